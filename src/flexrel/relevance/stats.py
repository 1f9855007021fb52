"""The additive summary of a calibration set: two vectors a layer, and their absolute parts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flexrel.errors import PackError, UsageError
from flexrel.relevance.balance import Balance, merged
from flexrel_edge.files import replace_file

Part = Literal["sum", "positive", "absolute", "sample"]
PARTS: tuple[Part, ...] = ("sum", "positive", "absolute", "sample")
_FORMAT, _VERSION = "flexrel-statistics", 3
_SUMS = ("input", "output", "input_absolute", "output_absolute", "input_samples", "output_samples")


@dataclass(frozen=True, slots=True, eq=False)
class LayerRelevance:
    """Relevance of one layer's inputs and outputs, summed over samples and positions.

    Attributes:
        input: `[in]` of a linear layer, `[channels, *kernel]` of a convolution, `[rows]` of an
            embedding; float64, in units of the output that relevance started from. Higher means
            more relevant.
        output: `[out]`, likewise; the features of an embedding.
        input_absolute: as `input`, with every term's absolute value.
        output_absolute: as `output`, with every term's absolute value.
        groups: of the convolution; 1 for a linear layer.
        transposed: whether the weight is `[in, out / groups, *kernel]`, as of an embedding, of a
            transposed convolution, and of Hugging Face's Conv1D.
        tied: other names of the same weight. It counts once, here, with what all its uses got.
        input_samples: `[channels]`, the sum over samples of the absolute value of what all
            positions of a channel add up to in one sample; None stands for `input_absolute`, the
            mean over kernel positions, which it is where a channel is one number.
        output_samples: likewise of the output.

    Raises:
        UsageError: the shapes don't fit each other, or a value is NaN or infinite.
    """

    input: Float[Tensor, "*units"]
    output: Float[Tensor, "out"]
    input_absolute: Float[Tensor, "*units"]
    output_absolute: Float[Tensor, "out"]
    groups: int = 1
    transposed: bool = False
    tied: tuple[str, ...] = ()
    input_samples: Float[Tensor, "channels"] | None = None
    output_samples: Float[Tensor, "out"] | None = None

    def __post_init__(self) -> None:
        for side in ("input", "output"):
            if getattr(self, f"{side}_samples") is None:
                absolute = getattr(self, f"{side}_absolute")
                by_channel = absolute.flatten(1).mean(1) if absolute.ndim > 1 else absolute
                object.__setattr__(self, f"{side}_samples", by_channel)
        sums = self.sums()
        inputs, outputs, *rest = (tuple(tensor.shape) for tensor in sums.values())
        fitting = rest == [inputs, outputs, inputs[:1], outputs] and len(outputs) == 1
        groups = self.groups
        if not fitting or groups < 1 or not inputs or inputs[0] % groups or outputs[0] % groups:
            raise UsageError(
                f"relevance of shapes {inputs} and {outputs}, absolute {rest[0]} and {rest[1]}, "
                f"is not that of one layer of {groups} groups"
            )
        for tensor in sums.values():
            if not bool(tensor.isfinite().all()):
                raise UsageError("relevance has a NaN or an infinity")

    def sums(self) -> dict[str, Tensor]:
        """Return all that adds up, by the attribute's name."""
        return {name: getattr(self, name) for name in _SUMS}

    def vectors(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return `input` and `output` as plain sums, sums of positive parts, or of absolutes.

        "sample" is the absolute value of what a channel adds up to in each sample (`*_samples`),
        the same for all positions of a kernel.

        Raises:
            UsageError: there is no such part.
        """
        if part == "sum":
            return self.input, self.output
        if part == "absolute":
            return self.input_absolute, self.output_absolute
        if part == "positive":
            inputs = (self.input + self.input_absolute) / 2
            return inputs, (self.output + self.output_absolute) / 2
        if part == "sample":
            kernel = [1] * (self.input.ndim - 1)
            sums = self.sums()
            channels = sums["input_samples"].view(-1, *kernel)
            return channels.expand_as(self.input), sums["output_samples"]
        raise UsageError(f"part {part!r} of relevance is not one of {', '.join(PARTS)}")

    def along(self, axis: int, part: Part) -> Float[Tensor, "entries"]:
        """Return the relevance of each entry along axis 0 or 1 of the weight, float64.

        A kernel's positions are averaged; what all groups read or make with one entry adds up.
        """
        inputs, outputs = self.vectors(part)
        of_inputs = axis == (0 if self.transposed else 1)
        values = inputs.reshape(len(inputs), -1).mean(dim=1) if of_inputs else outputs
        # Along axis 0 lies what each group reads or makes; along axis 1 what one of them does.
        return values if axis == 0 else values.unflatten(0, (self.groups, -1)).sum(dim=0)

    def parameter_relevance(
        self, part: Part = "sum", dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "first *rest"]:
        """Return the relevance of every weight: `rel(w_jk) = r_in[k] + r_out[j]`.

        Args:
            part: of relevance; "sum" is the paper's literal reading.
            dtype: of the result.

        Returns:
            Shape of the layer's weight: `[out, in]`, or `[out, channels / groups, *kernel]`, or
            with the first two the other way round if `transposed`. Higher means keep.

        Source:
            arXiv 2405.13088, parameter relevance from activation relevance.
        """
        inputs, outputs = (vector.to(dtype) for vector in self.vectors(part))
        grouped = inputs.unflatten(0, (self.groups, -1))  # [groups, in per group, *kernel]
        kernel = [1] * (inputs.ndim - 1)
        if self.transposed:
            relevance: Tensor = grouped.unsqueeze(2) + outputs.view(self.groups, 1, -1, *kernel)
        else:
            relevance = grouped.unsqueeze(1) + outputs.view(self.groups, -1, 1, *kernel)
        return relevance.flatten(0, 1)

    def __add__(self, other: "LayerRelevance") -> "LayerRelevance":
        shapes = [
            (tuple(s.input.shape), len(s.output), s.groups, s.transposed) for s in (self, other)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"stats of layers of different shapes, {shapes[0]} and {shapes[1]}, don't add"
            )
        others = other.sums()
        sums: dict[str, Any] = {name: tensor + others[name] for name, tensor in self.sums().items()}
        return replace(self, **sums, tied=tuple(dict.fromkeys((*self.tied, *other.tied))))

    def scaled(self, factor: float) -> "LayerRelevance":
        """Return every sum times `factor`."""
        sums: dict[str, Any] = {name: tensor * factor for name, tensor in self.sums().items()}
        return replace(self, **sums)


@dataclass(frozen=True, slots=True, eq=False)
class RelevanceStats(Mapping[str, LayerRelevance]):
    """Relevance of a network on a calibration set: layer name -> its two vectors.

    RelevanceStats of two batches, processes, machines or devices add up: `a + b` is what one run
    over both sets would have given, up to rounding.

    Attributes:
        layers: layer name as in `model.named_modules()` -> its sums, on the CPU. A parameter that
            is no module's `weight` has its own name, with `[first:last]` for some of its rows.
        samples: how many inputs they are sums over; a float, as weights and `scaled` scale it.
        rule: the relevance rule they were made with.
        output: what relevance started from: "label", "predicted", "norm" or a callable's name.
        model: fingerprint of the network they belong to, "" if unknown: stats of
            different networks don't add.
        balances: what each operation did with its relevance, if calibration was to check.
        unmeasured: parameters of two axes or more that no relevance came to, or that are used in
            a way that is no layer's, as in an LSTM.
    """

    layers: Mapping[str, LayerRelevance]
    samples: float
    rule: str
    output: str
    model: str = ""
    balances: tuple[Balance, ...] = ()
    unmeasured: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LayerRelevance:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __add__(self, other: "RelevanceStats") -> "RelevanceStats":
        if (self.rule, self.output) != (other.rule, other.output):
            raise UsageError(
                f"stats made with rule {self.rule!r} from output {self.output!r} don't add "
                f"to those made with {other.rule!r} from {other.output!r}"
            )
        strangers = sorted(self.layers.keys() ^ other.layers.keys())
        if self.model != other.model or (strangers and not self.model):
            shown = f"only one of them has {', '.join(strangers[:3])}" if strangers else ""
            shown += " ..." if len(strangers) > 3 else ""  # noqa: PLR2004
            raise UsageError(
                "stats of different networks don't add: "
                + (shown or f"fingerprints {self.model[:8]!r} and {other.model[:8]!r}")
            )
        layers = dict(self.layers)  # of one network: a layer may have run for one of them only
        for name, layer in other.layers.items():
            layers[name] = layers[name] + layer if name in layers else layer
        return RelevanceStats(
            dict(sorted(layers.items())),
            self.samples + other.samples,
            self.rule,
            self.output,
            self.model,
            merged([*self.balances, *other.balances]),
            tuple(name for name in self.unmeasured if name in other.unmeasured),
        )

    def scaled(self, factor: float) -> "RelevanceStats":
        """Return all sums and the sample count times `factor`: forgetting, or weighting."""
        layers = {name: layer.scaled(factor) for name, layer in self.layers.items()}
        balances = tuple(balance.scaled(factor) for balance in self.balances)
        return replace(self, layers=layers, samples=self.samples * factor, balances=balances)

    def save(self, path: str | Path) -> None:
        """Write the stats to a safetensors file, whole or not at all."""
        tensors = {
            f"{name}|{field}": tensor.clone(memory_format=torch.contiguous_format)
            for name, layer in self.layers.items()
            for field, tensor in layer.sums().items()
        }
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "samples": self.samples,
            "rule": self.rule,
            "output": self.output,
            "model": self.model,
            "layers": {
                name: {"groups": s.groups, "transposed": s.transposed, "tied": s.tied}
                for name, s in self.layers.items()
            },
            "balances": [asdict(balance) for balance in self.balances],
            "unmeasured": self.unmeasured,
        }
        replace_file(Path(path), save(tensors, {"about": json.dumps(about)}))

    @staticmethod
    def load(path: str | Path) -> "RelevanceStats":
        """Read stats that `save` wrote.

        Raises:
            UsageError: there is no such file.
            PackError: the file is damaged, or holds something else.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file of stats")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                found = about["format"], about["version"]
                names = [f"{name}|{field}" for name in about["layers"] for field in _SUMS]
                tensors = {name: file.get_tensor(name) for name in names}
            if found == (_FORMAT, _VERSION):
                return _parsed(about, tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise PackError(f"{path}: is no file of stats, or it is damaged: {error}") from error
        except UsageError as error:
            raise PackError(f"{path}: is damaged: {error}") from error
        raise PackError(
            f"{path}: is {found[0]} version {found[1]}, expected {_FORMAT} version {_VERSION}"
        )


def _parsed(about: Mapping[str, Any], tensors: Mapping[str, Any]) -> RelevanceStats:
    samples = float(about["samples"])
    texts = {key: about[key] for key in ("rule", "output", "model")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError(f"its rule, output and model are {texts}")
    if not 0 <= samples < inf:
        raise ValueError(f"it counts {samples} samples")
    if any(tensor.dtype != torch.float64 for tensor in tensors.values()):
        raise TypeError("not all of its tensors are float64")
    layers = {
        name: LayerRelevance(
            **{field: tensors[f"{name}|{field}"] for field in _SUMS},
            groups=int(kept["groups"]),
            transposed=bool(kept["transposed"]),
            tied=tuple(map(str, kept["tied"])),
        )
        for name, kept in dict(about["layers"]).items()
    }
    balances = tuple(Balance(**balance) for balance in about["balances"])
    unmeasured = tuple(map(str, about["unmeasured"]))
    return RelevanceStats(layers, samples, **texts, balances=balances, unmeasured=unmeasured)

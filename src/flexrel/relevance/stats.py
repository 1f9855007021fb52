"""The additive summary of a calibration set: the vectors of every layer, added up and saved."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from flexrel.errors import PackError, UsageError
from flexrel.relevance.balance import Balance, merged
from flexrel.relevance.vectors import SUMS, LayerRelevance
from flexrel_edge.files import replace_file

_FORMAT, _VERSION = "flexrel-statistics", 3


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
        replace_file(Path(path), self.encode())

    def encode(self) -> bytes:
        """Return what `save` writes."""
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
        return safetensors.torch.save(tensors, {"about": json.dumps(about)})

    @staticmethod
    def load(path: str | Path) -> "RelevanceStats":
        """Read stats that `save` wrote.

        Raises:
            UsageError: there is no such file.
            PackError: the file is damaged, or holds something else.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file of stats")
        return RelevanceStats.decode(Path(path).read_bytes(), str(path))

    @staticmethod
    def decode(data: bytes, source: str) -> "RelevanceStats":
        """Return the stats that `encode` made these bytes of.

        Args:
            data: all of them.
            source: where they are from; errors begin with it.

        Raises:
            PackError: they are damaged, or something else.
        """
        try:
            tensors = safetensors.torch.load(data)
            about = json.loads(_metadata(data)["about"])
            found = about["format"], about["version"]
            if found == (_FORMAT, _VERSION):
                return _parsed(about, tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise PackError(f"{source}: is no file of stats, or it is damaged: {error}") from error
        except UsageError as error:
            raise PackError(f"{source}: is damaged: {error}") from error
        raise PackError(
            f"{source}: is {found[0]} version {found[1]}, expected {_FORMAT} version {_VERSION}"
        )


def _metadata(data: bytes) -> Mapping[str, str]:
    """Return the texts in the header of a safetensors file that was read whole; {} if none."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__", {}))


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
            **{field: tensors[f"{name}|{field}"] for field in SUMS},
            groups=int(kept["groups"]),
            transposed=bool(kept["transposed"]),
            tied=tuple(map(str, kept["tied"])),
        )
        for name, kept in dict(about["layers"]).items()
    }
    balances = tuple(Balance(**balance) for balance in about["balances"])
    unmeasured = tuple(map(str, about["unmeasured"]))
    return RelevanceStats(layers, samples, **texts, balances=balances, unmeasured=unmeasured)

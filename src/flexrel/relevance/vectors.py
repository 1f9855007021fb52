"""Relevance of one layer: two vectors, their absolute parts, and what they say of its weights."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.errors import UsageError

Part = Literal["sum", "positive", "absolute", "sample"]
PARTS: tuple[Part, ...] = ("sum", "positive", "absolute", "sample")
SUMS = ("input", "output", "input_absolute", "output_absolute", "input_samples", "output_samples")


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
        return {name: getattr(self, name) for name in SUMS}

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

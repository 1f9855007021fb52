"""Padding before a convolution counts as the convolution's own: its units are what was padded."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.relevance.patches import Stamp, Window


class Pads:
    """Which tensors are padded ones, of what, and how."""

    def __init__(self) -> None:
        self._sources = WeakTensorKeyDictionary()

    def forget(self) -> None:
        """Let go of all tensors."""
        self._sources.clear()

    def note(
        self,
        result: Tensor,
        source: Tensor,
        pad: Iterable[int],
        mode: str = "constant",
        value: float | None = None,
    ) -> None:
        """Note a call of `pad`, with its arguments as torch names them."""
        sides = list(pad)
        pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]  # first axis first
        if source.requires_grad and all(side >= 0 for side in sides) and not value:
            kept = (source, pairs, "zeros" if mode == "constant" else mode)
            self._sources[result] = (kept, _versions(result, source))

    def undone(
        self, inputs: Tensor, axes: Sequence[Window | Stamp]
    ) -> tuple[Tensor, Sequence[Window | Stamp], Tensor]:
        """Return what a convolution reads before padding, and how it reads that.

        Also returns the part of `inputs` with the same values, which autograd keeps anyway.
        """
        if inputs not in self._sources:
            return inputs, axes, inputs
        (source, pairs, mode), versions = self._sources[inputs]
        if versions != _versions(inputs, source) or len(pairs) > len(axes):
            return inputs, axes, inputs
        found = list(axes)
        inside = inputs
        for at, (before, after) in enumerate(pairs, start=len(axes) - len(pairs)):
            axis = found[at]
            if isinstance(axis, Stamp) or (mode != "zeros" and (axis.before or axis.after)):
                return inputs, axes, inputs
            found[at] = replace(
                axis, before=axis.before + before, after=axis.after + after, mode=mode
            )
            inside = inside.narrow(at + 2, before, source.shape[at + 2])
        return source, tuple(found), inside


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors)  # noqa: SLF001 - to see what was overwritten

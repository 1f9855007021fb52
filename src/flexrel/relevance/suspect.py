"""Finds the operation that first made a NaN, forward or on relevance's way back."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.core.running import tensors_of


class Suspect:
    """Looks at every operation's result and at what comes back to it."""

    def __init__(self) -> None:
        self.found = ""
        self._readers = WeakTensorKeyDictionary()  # tensor -> the operations that read it

    def saw(self, name: str, place: str, given: Iterable[Any], result: Any) -> None:  # noqa: ANN401
        """Look at one operation, and watch what comes back to its result."""
        told = f"{name} in {place!r}" if place else name
        tensors = [value for value in given if isinstance(value, Tensor)]
        made = [t for t in tensors_of(result) if t.is_floating_point()]
        if not self.found and any(bool(t.isnan().any()) for t in made):
            self.found = told
        for tensor in tensors:
            if tensor.requires_grad:
                self._readers.setdefault(tensor, []).append(told)
        for tensor in made:
            if tensor.requires_grad:
                self._watch(tensor)

    def _watch(self, tensor: Tensor) -> None:
        readers: list[str] = self._readers.setdefault(tensor, [])

        def look(gradient: Tensor) -> None:
            if not self.found and not bool(gradient.isfinite().all()):
                self.found = f"the way back through {', '.join(dict.fromkeys(readers))}"

        tensor.register_hook(look)

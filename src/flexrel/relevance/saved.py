"""Activations saved until their relevance is read, in no more memory than autograd needs."""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.tracing import Op


class SavedActivation:
    """The value that an activation has or had; a rule and a sum may share it."""

    __slots__ = ("_version", "of_version", "stands_in", "value", "was_read")

    def __init__(self, tensor: Tensor, value: Tensor) -> None:
        self.of_version = tensor._version  # noqa: SLF001 - torch has no public name for it
        self.was_read = False  # by any operation
        self.save(value)

    def save(self, value: Tensor, *, stands_in: bool = False) -> None:
        """Save a value as it is now; `stands_in`: it is a ReLU's result, in place of its input."""
        self.value, self.stands_in = value.detach(), stands_in
        self._version = value._version  # noqa: SLF001

    @property
    def overwritten(self) -> bool:
        """Whether the model has overwritten the memory meanwhile."""
        return bool(self.value._version != self._version)  # noqa: SLF001

    def is_lost(self, gradient: Tensor) -> bool | Tensor:
        """Return whether the value is not what this gradient is of, perhaps as a tensor.

        A ReLU's result stands in for its input where the gradient is 0 if it is 0; else something
        read the input unseen.
        """
        if self.overwritten:
            return True
        return self.stands_in and ((self.value == 0) & (gradient != 0)).any()


class SavedActivations:
    """What is saved of which tensor, and what the model does to those tensors meanwhile.

    A ReLU's result stands in for its input where nothing else reads that: they differ only where
    the gradient is zero. Autograd keeps the result anyway, so the input costs no memory. What is
    about to be overwritten otherwise is copied first.

    Args:
        copy: keep copies, for a model that overwrites activations unseen.

    Attributes:
        lost: whether a value was overwritten unseen, through a view.
    """

    def __init__(self, *, copy: bool) -> None:
        self.lost = False
        self._copy = copy
        self._saved = WeakTensorKeyDictionary()

    def forget(self) -> None:
        """Let go of all tensors; what was handed out stays saved."""
        self._saved.clear()

    def save(self, tensor: Tensor, *, read: bool = False) -> SavedActivation:
        """Return what is saved of the tensor's present value; `read`: by the operation at hand."""
        found: SavedActivation | None = self._saved.get(tensor)
        if found is None or found.of_version != tensor._version:  # noqa: SLF001
            value = tensor.detach().clone() if self._copy else tensor
            found = self._saved[tensor] = SavedActivation(tensor, value)
        found.was_read |= read
        return found

    def before(self, op: Op, tensors: list[Tensor]) -> bool:
        """Note that an operation is about to read these tensors, and may overwrite the first.

        Returns whether it is a ReLU whose result may stand in for its input: tell `rectified`.
        """
        stands_in = False
        for at, tensor in enumerate(tensors):
            saved: SavedActivation | None = self._saved.get(tensor)
            if saved is None:
                continue
            self.lost |= saved.overwritten or saved.of_version != tensor._version  # noqa: SLF001
            first, saved.was_read = not saved.was_read, True
            if op.name in _RECTIFIERS and first and not self._copy:
                stands_in = True
                continue
            if at == 0 and op.writes:
                if not self._copy:
                    saved.save(tensor.clone())
                del self._saved[tensor]  # from now on it is another activation
            elif not self._copy and saved.value.data_ptr() != tensor.data_ptr():
                saved.save(tensor)  # a ReLU's result stood in, but it is read again
        return stands_in

    def rectified(self, tensor: Tensor, result: Tensor) -> None:
        """Note that `result` is the ReLU of `tensor`, in the same memory or in its own."""
        saved = self._saved[tensor]
        if result.data_ptr() == tensor.data_ptr():
            del self._saved[tensor]
        saved.save(result, stands_in=True)


_RECTIFIERS = frozenset({"relu", "relu_"})

"""Activations kept until their relevance is read, in no more memory than autograd needs."""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.tracing import overwrites


class Held:
    """The value that an activation has or had; a rule and a sum may share it."""

    __slots__ = ("_version", "of_tensor", "stands_in", "value")

    def __init__(self, tensor: Tensor, *, copy: bool) -> None:
        self.of_tensor = tensor._version  # noqa: SLF001 - torch has no public name for it
        self.put(tensor.detach().clone() if copy else tensor.detach())

    def put(self, value: Tensor) -> None:
        """Hold another value, as it is now."""
        self.value = value
        self.stands_in = False
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


class Holder:
    """What is held of which tensor, and what the model does to those tensors meanwhile.

    A ReLU's result stands in for its input where nothing else reads that: they differ only where
    the gradient is zero. Autograd keeps the result anyway, so the input costs no memory. What is
    about to be overwritten otherwise is copied first.
    """

    def __init__(self, *, copy: bool) -> None:
        self.lost = False  # a value was overwritten unseen, through a view
        self._copy = copy
        self._held = WeakTensorKeyDictionary()
        self._read: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by an operation at all

    def forget(self) -> None:
        """Let go of all tensors; what was handed out goes on being held."""
        self._held.clear()
        self._read.clear()

    def hold(self, tensor: Tensor, *, read: bool = False) -> Held:
        """Return what is held of the tensor's present value; `read`: by the operation at hand."""
        if read:
            self._read[tensor] = True
        found: Held | None = self._held.get(tensor)
        if found is None or found.of_tensor != tensor._version:  # noqa: SLF001
            found = self._held[tensor] = Held(tensor, copy=self._copy)
        return found

    def reads(self, operation: str, tensors: list[Tensor]) -> bool:
        """Note that an operation is about to read these tensors, and may overwrite the first.

        Returns whether it is a ReLU whose result may stand in for its input: tell `rectified`.
        """
        stands_in = False
        for at, tensor in enumerate(tensors):
            held = self._held.get(tensor)
            if held is None:
                continue
            self.lost |= held.overwritten or held.of_tensor != tensor._version  # noqa: SLF001
            first = tensor not in self._read
            self._read[tensor] = True
            if operation in RECTIFIERS and first and not self._copy:
                stands_in = True
                continue
            if at == 0 and overwrites(operation):
                if not self._copy:
                    held.put(tensor.detach().clone())
                del self._held[tensor]
            elif not self._copy and held.value.data_ptr() != tensor.data_ptr():
                held.put(tensor.detach())  # a ReLU's result stood in, but it is read again
        return stands_in

    def rectified(self, tensor: Tensor, result: Tensor) -> None:
        """Note that `result` is the ReLU of `tensor`, in the same memory or in its own."""
        held = self._held[tensor]
        if result.data_ptr() == tensor.data_ptr():
            del self._held[tensor]  # from now on it is another activation
            self._read.pop(tensor, None)
        held.put(result.detach())
        held.stands_in = True


RECTIFIERS = frozenset({"relu", "relu_"})

"""Which layer a tensor is the weight of: parameters by identity, and views of them."""

from dataclasses import dataclass

from torch import Tensor, nn

from flexrel.core.graph import layer_of


@dataclass(frozen=True, slots=True)
class Owner:
    """The layer that a weight belongs to, and how the weight lies in its parameter.

    Attributes:
        name: of the layer; with `[first:last]` where the weight is only those rows.
        transposed: whether the weight is the parameter's transpose.
        tied: other names of the same parameter.
    """

    name: str
    transposed: bool = False
    tied: tuple[str, ...] = ()


class Weights:
    """The parameters of a model, found again by the memory they lie in."""

    def __init__(self, model: nn.Module) -> None:
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        self._parameters: dict[int, list[tuple[Tensor, Owner]]] = {}
        for parameter in model.parameters():
            first, *tied = (layer_of(name) for name in names[id(parameter)])
            owner = Owner(first, tied=tuple(tied))
            place = parameter.untyped_storage().data_ptr()
            self._parameters.setdefault(place, []).append((parameter, owner))

    def owner(self, weight: Tensor) -> Owner | None:
        """Return whose weight it is: a parameter, its transpose, or some of its rows; or None."""
        for parameter, owner in self._parameters.get(weight.untyped_storage().data_ptr(), ()):
            if parameter.device != weight.device:
                continue
            start = int(weight.storage_offset() - parameter.storage_offset())
            if start == 0 and weight.shape == parameter.shape and _same_strides(weight, parameter):
                return owner
            if start == 0 and parameter.ndim == 2 and _is_transpose(weight, parameter):  # noqa: PLR2004
                return Owner(owner.name, transposed=True, tied=owner.tied)
            rows = _rows(weight, parameter, start)
            if rows:
                return Owner(f"{owner.name}[{rows[0]}:{rows[1]}]", tied=owner.tied)
        return None


def _same_strides(one: Tensor, other: Tensor) -> bool:
    """Compare strides of axes that have more than one entry."""
    return all(
        a == b or size == 1
        for a, b, size in zip(one.stride(), other.stride(), one.shape, strict=True)
    )


def _is_transpose(weight: Tensor, parameter: Tensor) -> bool:
    return weight.shape == parameter.shape[::-1] and _same_strides(weight, parameter.t())


def _rows(weight: Tensor, parameter: Tensor, start: int) -> tuple[int, int] | None:
    """Return which rows of the parameter the weight is, if it is some of them."""
    if weight.ndim != parameter.ndim or weight.shape[1:] != parameter.shape[1:]:
        return None
    step = parameter.stride(0)
    if not step or start % step or not _same_strides(weight[:1], parameter[:1]):
        return None
    first = start // step
    inside = first >= 0 and first + len(weight) <= len(parameter)
    return (first, first + len(weight)) if inside else None

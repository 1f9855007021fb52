"""The arguments of an operation: which of them relevance goes to, and them changed for a rule."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flexrel.relevance.backward import shared
from flexrel.tracing import flat


def is_active(value: Any) -> bool:  # noqa: ANN401 - an operation's argument, here and below
    """Return whether relevance goes to it: whether it is a tensor made of the model's inputs."""
    return isinstance(value, Tensor) and value.requires_grad


def active(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors, in lists and tuples too, that relevance goes to."""
    return [value for value in flat((*args, *kwargs.values())) if is_active(value)]


def share(value: Any, count: int) -> Any:  # noqa: ANN401
    """Return it as one of `count` factors that get equal parts of the relevance of a product."""
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        return type(value)(share(v, count) for v in value)
    return shared(value, count) if is_active(value) else value


def constant(value: Any) -> Any:  # noqa: ANN401
    """Return it, if a tensor, as one that relevance doesn't go to."""
    return value.detach() if isinstance(value, Tensor) else value


def detached(values: Any) -> Any:  # noqa: ANN401
    """Return arguments, a tuple or a mapping, with every tensor as a constant."""
    if isinstance(values, Mapping):
        return {key: constant(value) for key, value in values.items()}
    return tuple(constant(value) for value in values)

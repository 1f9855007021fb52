"""Zeros that a plan set are noted on the network, so that those that are lost can be told."""

from collections.abc import Iterable
from typing import Final

from torch import Tensor, nn

_NOTE: Final = "_flexrel_zeros"  # on a network: how many zeros each weight that has some was given


def note_zeros_(model: nn.Module, weights: Iterable[str]) -> None:
    """Note how many zeros each of the weights has now; the note is copied with the model."""
    given, noted = set(weights), dict(vars(model).get(_NOTE, {}))
    now = {name: _zeros(p) for name, p in model.named_parameters() if name in given}
    setattr(model, _NOTE, noted | now)


def forget_zeros_(model: nn.Module) -> None:
    """Drop the note, of a model whose weights are cut."""
    vars(model).pop(_NOTE, None)


def lost_zeros(model: nn.Module) -> tuple[str, ...]:
    """Return a line if weights have fewer zeros than they were given, as training leaves them."""
    noted = dict(vars(model).get(_NOTE, {}))
    weights = ((name, p) for name, p in model.named_parameters() if name in noted)
    lost = sum(max(0, noted[name] - _zeros(weight)) for name, weight in weights)
    if not lost:
        return ()
    told = (
        f"{lost:,} of the {sum(noted.values()):,} zeros that a plan set in the network are other "
        "numbers now, as a loop that trains on leaves them; flexrel.MaskHolder(model, plan) holds "
        "them in training"
    )
    return (told,)


def _zeros(weight: Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())

"""What of a network can be pruned, and what goes together. Frozen, validated when made."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flexrel.core.granularity import Pattern, WeightLayout
from flexrel.errors import ModelError, UsageError

Role = Literal["producer", "consumer", "follower", "both"]
GroupKind = Literal["channel", "head", "block"]
Masks = Mapping[str, Tensor]  # group name -> which units stay, of the group's shape; True = keep


def weight_of(layer: str) -> str:
    """Return the name of a layer's weight, as in `model.named_parameters()`."""
    return f"{layer}.weight" if layer else "weight"


def tensor_of(layer: str, names: Container[str]) -> str:
    """Return the name of a layer's weight; of a parameter that is no layer's weight, that name.

    Args:
        layer: as `layer_of` returns it.
        names: of all tensors.
    """
    return weight if (weight := weight_of(layer)) in names else layer


def layer_of(weight: str) -> str:
    """Return the name of the layer that a weight belongs to; of any other name, that name."""
    return "" if weight == "weight" else weight.removesuffix(".weight")


@dataclass(frozen=True, slots=True, eq=False)
class GroupMember:
    """The part of one tensor that belongs to the units of a group.

    Unit `u` owns the entries `index[u]` along `axis` of `tensor`: several where a flattened
    channel became a stripe of features, or for a head.
    """

    tensor: str
    axis: int
    index: Int64[Tensor, "units inner"]
    role: Role  # producer: makes the unit; consumer: reads it; follower: bias, norm
    values: Float[Tensor, "units inner groups"] | None = None  # read of constant units, else 0

    @property
    def makes(self) -> bool:
        """Whether the tensor makes the unit; a tied embedding makes and reads it."""
        return self.role in ("producer", "both")

    @property
    def reads(self) -> bool:
        """Whether the tensor reads the unit."""
        return self.role in ("consumer", "both")


@dataclass(frozen=True, slots=True)
class ResidualBlock:
    """A module whose output is its input and a branch, and what goes when it is passed over."""

    module: str  # as in `model.named_modules()`
    tensors: tuple[str, ...]  # its parameters, but those that something outside blocks has too
    makers: tuple[str, ...]  # the layers that make what it adds
    macs: int  # multiply-adds of one sample
    place: tuple[int, int] | None  # of what it returns: which entry of a tuple of how many


@dataclass(frozen=True, slots=True, eq=False)
class PruningGroup:
    """One thing that can be pruned, and its units.

    For `element` and N:M a unit is one entry of the layer's weight, for `block` a block of it;
    `members` is empty. Else a unit is a channel, a neuron or an attention head, with all that goes
    when it goes; for `depth`, one of its `blocks`: there is one such group in a network.
    """

    name: str  # of the layer that makes the units, or of the parameter that is no layer's weight
    shape: tuple[int, ...]  # of a mask over the units
    members: tuple[GroupMember, ...] = ()
    kind: GroupKind = "channel"
    constant: Bool[Tensor, "units"] | None = None  # which never change, whatever the input
    blocks: tuple[ResidualBlock, ...] = ()  # one a unit, for `depth`
    layout: WeightLayout | None = None  # of the weight, for N:M and `block`

    @property
    def units(self) -> int:
        """How many units there are."""
        return prod(self.shape)

    @property
    def is_weight(self) -> bool:
        """Whether it is a mask over a weight, and no channels, heads or residual blocks."""
        return not (self.members or self.blocks)

    @property
    def readers(self) -> set[str]:
        """The layers that take the units in; where single weights go, their own layer."""
        return {layer_of(s.tensor) for s in self.members if s.reads} or {self.name}

    def __post_init__(self) -> None:
        if self.units < 1:
            raise UsageError(f"group {self.name!r} has shape {self.shape}, so no unit")


@dataclass(frozen=True, slots=True)
class SizeAttribute:
    """A number that a module's code sizes axes by, and how it falls as units go."""

    module: str  # as in `model.named_modules()`
    name: str
    place: int | None  # in a tuple or list; None: it is the number itself
    units: tuple[tuple[str, int], ...]  # group -> by how much each unit of it that goes


@dataclass(frozen=True, slots=True, eq=False)
class ProgramSize:
    """A number in the code of an exported program, and how it falls as units go."""

    node: str  # of the graph
    argument: str  # of the node's operation, by its name in the schema
    place: int | None  # in a list; None: it is the number itself
    value: int  # for the example
    units: Mapping[str, Int64[Tensor, "units"]]  # group -> by how much with each unit


ShrinkingAxes = tuple[tuple[int, tuple[tuple[str, int], ...]], ...]
"""Of each axis its length, and how it shrinks as units go: group -> by how much."""


@dataclass(frozen=True, slots=True)
class ProductMacs:
    """Multiply-adds of one sample in which no parameter takes part, as in attention."""

    macs: int
    axes: ShrinkingAxes  # that are multiplied


@dataclass(frozen=True, slots=True)
class Protected:
    """A layer left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PruningGraph:
    """What of a network can be pruned at one granularity, and what its tensors cost."""

    granularity: str  # as `Pattern.of` reads it
    groups: tuple[PruningGroup, ...]
    protected: tuple[Protected, ...]
    shapes: Mapping[str, tuple[int, ...]]  # of every parameter, tied ones once
    uses: tuple[tuple[str, int], ...]  # weight, multiply-adds per weight entry for one sample
    products: tuple[ProductMacs, ...] = ()
    attributes: tuple[SizeAttribute, ...] = ()
    fingerprint: str = ""  # of the network; "" if unknown
    program_sizes: tuple[ProgramSize, ...] = ()  # of an exported program

    @property
    def pattern(self) -> Pattern:
        """What the units are."""
        return Pattern.of(self.granularity)

    @property
    def units(self) -> int:
        """How many units there are in all groups."""
        return sum(group.units for group in self.groups)

    def only(
        self, groups: Sequence[PruningGroup], protected: Sequence[Protected]
    ) -> "PruningGraph":
        """Return the graph with these groups alone, and with what is protected besides.

        Raises:
            ModelError: no group is left.
        """
        if not groups:
            first = protected[0]
            raise ModelError(f"no layer can be scored: {first.name}: {first.reason}")
        return replace(self, groups=tuple(groups), protected=(*self.protected, *protected))

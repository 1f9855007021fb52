"""How a result shows itself to a person: printed, in a notebook, as a frame, as a picture."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.class_names import ClassNames
from flexrel.core.measurement import Measurement
from flexrel.core.plan import LayerRow, Plan, layer_rows
from flexrel.io import (
    amount,
    as_axes,
    as_frame,
    as_html,
    as_text,
    evidence_note,
    inputs_note,
    names_note,
)
from flexrel.pruning.annotation import noted
from flexrel.pruning.limits import Limits
from flexrel_edge.format import describe


class Displayed(ABC):
    """A result, as far as it is shown; `Result` says what each attribute is."""

    __slots__ = ()

    model: nn.Module
    plan: Plan
    dense: Measurement
    achieved: Measurement
    limits: Limits
    samples: int | None
    samples_a_call: int | None
    example: Batch
    packed: bytes
    class_names: ClassNames

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """What the plan does to each layer, in the order of the network."""
        sizes = {entry.name: entry.bytes for entry in describe(self.packed).tensors}
        return layer_rows(self.plan.graph, self.plan.masks, sizes)

    @property
    def asked(self) -> tuple[str, ...]:
        """Each limit that was asked for, in words."""
        bounds = [
            *((goal.metric, not goal.lower_is_better, goal.limit) for goal in self.limits.goals),
            *((r.key, r.at_least, limit) for r, limit in self.limits.amounts),
        ]
        return tuple(
            f"{name} at {'least' if at_least else 'most'} {amount(limit)}"
            for name, at_least, limit in bounds
        )

    def annotated(self, input_names: Sequence[str] = ()) -> tuple[bytes, list[str]]:
        """Return the packed file with what tells people of inputs, accuracy, amounts and widths.

        And of what its classes are called. A line says why, where a budget leaves no room for that.

        Args:
            input_names: that the inputs are given; none: those of `forward`.
        """
        fixed = self.samples_a_call is not None
        inputs = inputs_note(self.model, self.example, fixed=fixed, names=input_names)
        evidence = evidence_note(self.dense, self.achieved, self.samples, self.layers)
        names = names_note(self.class_names, describe(self.packed).metadata)
        notes = {**names, **inputs, **evidence}
        return noted(self.packed, notes, self.model, self.plan, self.limits)

    def __repr__(self) -> str:
        """Say in some ten lines what came out."""
        return as_text(self.as_json(), self.asked, self.layers)

    def _repr_html_(self) -> str:
        """Return what notebooks show."""
        return as_html(self.as_json(), self.asked, self.layers)

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is an extra
        """Return the layers as a `pandas.DataFrame`, one a row, in the order of the network.

        Its columns: `name`; `width_dense`, `width`; `parameters_dense`, `parameters`; `macs_dense`,
        `macs`; `bytes` in the packed file; `reason` why it was left alone, or "".

        Raises:
            UsageError: the extra "notebook" is not installed.
        """
        return as_frame(self.layers)

    def plot(self, axes: Any = None) -> Any:  # noqa: ANN401 - matplotlib is an extra
        """Return `matplotlib.axes.Axes` with each layer's parameters, dense and now.

        Args:
            axes: to draw on; None: new ones.

        Raises:
            UsageError: the extra "notebook" is not installed.
        """
        return as_axes(self.layers, axes)

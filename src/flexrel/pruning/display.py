"""How a result shows itself to a person: printed, in a notebook, as a frame, as a picture."""

from abc import ABC, abstractmethod
from typing import Any

from flexrel.core.plan import LayerRow, Plan, layer_rows
from flexrel.io import amount, as_axes, as_frame, as_html, as_text
from flexrel.pruning.limits import Limits
from flexrel_edge.format import describe


class Displayed(ABC):
    """What has a plan, limits and a packed file, and shows them."""

    __slots__ = ()

    plan: Plan
    limits: Limits
    packed: bytes

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

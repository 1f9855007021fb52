"""What was tracked while a network was trained: averages that stand for its last values."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from flexrel.core.running import fingerprint
from flexrel.errors import UsageError
from flexrel.relevance import RelevanceStats


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Averages over the training of a network, as `flexrel.training.Tracker` makes them.

    Attributes:
        magnitudes: parameter's name -> the average of its absolute values, of its shape, float32,
            on the CPU. It stands for the weights where a criterion asks how large they are.
        relevance: the sum of the stats of the batches that were measured; None if none was. It
            stands for relevance measured after training.
        model: fingerprint of the network.
        measurements: how many training steps were looked at.
    """

    magnitudes: Mapping[str, Float[Tensor, "..."]]
    relevance: RelevanceStats | None
    model: str
    measurements: int

    def check(self, model: nn.Module) -> None:
        """Refuse the history of another network.

        Raises:
            UsageError: it is.
        """
        if self.model != fingerprint(model):
            raise UsageError(
                f"history= is of another network, of fingerprint {self.model[:8]}, this one's is "
                f"{fingerprint(model)[:8]}; track this very model"
            )

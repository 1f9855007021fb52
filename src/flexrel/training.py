"""Importance tracked while a network is trained, by a loop of one's own or anybody's.

A network's last weights are one draw of where training left them. Averages over training say how
large each was on the way, and how much it mattered: `prune(options=PruneOptions(history=...))`.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import RawBatch
from flexrel.core.network import private_copy
from flexrel.core.running import fingerprint
from flexrel.core.trainers import trainer_callback
from flexrel.criteria import History
from flexrel.errors import UsageError
from flexrel.relevance import Attribution, AttributionTarget, RelevanceStats, RuleLike, calibrate
from flexrel.repair import GradualPruner

__all__ = ["GradualPruner", "History", "Tracker"]

_STATE = "flexrel-tracker.pt"  # beside the other files of a trainer's checkpoint


class Tracker:
    """Averages the magnitude of weights, and relevance, over training steps.

        tracker = flexrel.training.Tracker(model)
        for batch in loader:
            ...
            optimizer.step()
            tracker.step(batch)
        flexrel.prune(model, ..., options=flexrel.PruneOptions(history=tracker.history()))

    The model is only read. Save `state_dict()` with the checkpoint, and training goes on as if it
    had not been stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        half_life: float | None = None,
        *,
        rule: RuleLike = "gradient-input",
        output: str | AttributionTarget = "auto",
    ) -> None:
        """Look at nothing yet.

        Args:
            model: that is trained, also inside `DistributedDataParallel` or `torch.compile`.
            every: so many steps it is looked at once.
            half_life: steps after which a look counts half; None: all count the same.
            rule: of relevance, as in `calibrate`.
            output: likewise; "label" takes the batch's labels.

        Raises:
            UsageError: an argument makes no sense.
        """
        if every < 1 or (half_life is not None and not half_life > 0):
            raise UsageError(
                f"every={every}, half_life={half_life}: steps between looks must be at least 1, "
                "and a half-life above 0"
            )
        self._wanted = Attribution(rule, output)
        self._model, self._every = model, every
        self._kept = 1.0 if half_life is None else 0.5 ** (every / half_life)  # of older looks
        self._steps = self._looks = 0
        self._weight = 0.0  # of all looks, older ones counting less
        self._magnitudes: dict[str, Tensor] = {}
        self._relevance: RelevanceStats | None = None

    def step(self, batch: RawBatch | None = None) -> None:
        """Count a step of the optimizer; every so many, look at the model.

        Args:
            batch: as `calibrate` takes one, whose relevance is measured then; None: of this look
                there are magnitudes alone.

        Raises:
            UsageError: the batch can't be read.
            ModelError: no relevance can be measured with it.
        """
        self._steps += 1
        if self._steps % self._every:
            return
        network = private_copy(self._model)
        found = None
        if batch is not None:
            found = calibrate(network, [batch], self._wanted.rule, self._wanted.output)
        self._looks += 1
        self._weight = self._weight * self._kept + 1
        with torch.no_grad():
            for name, weight in network.named_parameters():
                size = weight.detach().float().abs()
                if (average := self._magnitudes.get(name)) is None:
                    self._magnitudes[name] = size
                else:
                    average.lerp_(size.to(average.device), 1 / self._weight)
        if self._relevance is not None:
            older = self._relevance.scaled(self._kept)
            self._relevance = older if found is None else older + found
        else:
            self._relevance = found

    def history(self) -> History:
        """Return the averages so far, as `PruneOptions` takes them.

        Raises:
            UsageError: the model was not looked at yet.
        """
        if not self._looks:
            raise UsageError(
                f"nothing was tracked yet: the model is looked at every {self._every} steps, and "
                f"step() was called {self._steps} times"
            )
        return History(
            {name: average.cpu().clone() for name, average in self._magnitudes.items()},
            self._relevance,
            fingerprint(private_copy(self._model)),
            self._looks,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that was tracked, as tensors and numbers, to be saved with the checkpoint."""
        data = bytearray() if self._relevance is None else bytearray(self._relevance.encode())
        none = torch.empty(0, dtype=torch.uint8)
        return {
            "steps": self._steps,
            "looks": self._looks,
            "weight": self._weight,
            "magnitudes": {name: average.clone() for name, average in self._magnitudes.items()},
            "relevance": torch.frombuffer(data, dtype=torch.uint8) if data else none,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, to the bit.

        Raises:
            UsageError: it is of another model.
            PackError: its relevance is damaged.
        """
        own = private_copy(self._model)
        shapes = {name: list(p.shape) for name, p in own.named_parameters()}
        found = {name: list(average.shape) for name, average in state["magnitudes"].items()}
        if found and found != shapes:
            odd = next(n for n in {**shapes, **found} if shapes.get(n) != found.get(n))
            raise UsageError(
                f"the tracker's state is of another model: {odd} is {found.get(odd, 'missing')} "
                f"there, {shapes.get(odd, 'missing')} here"
            )
        data = state["relevance"].cpu().numpy().tobytes()
        relevance = RelevanceStats.decode(data, "the tracker's state") if data else None
        devices = {name: p.device for name, p in own.named_parameters()}
        self._steps, self._looks = int(state["steps"]), int(state["looks"])
        self._weight = float(state["weight"])
        self._magnitudes = {
            name: average.to(devices[name], copy=True)
            for name, average in state["magnitudes"].items()
        }
        self._relevance = relevance

    def lightning_callback(self, *, relevance: bool = True) -> Any:  # noqa: ANN401 - made there
        """Return a callback for Lightning's `Trainer` that counts its steps.

        A step is one of the optimizer, so that gradients may be accumulated. What was tracked is
        saved in, and restored from, Lightning's own checkpoints.

        Args:
            relevance: whether the step's batch measures relevance too.

        Raises:
            UsageError: neither `lightning` nor `pytorch_lightning` is installed.
        """
        seen = 0

        def start(trainer: Any, *_: object) -> None:  # noqa: ANN401 - Lightning's
            nonlocal seen
            seen = trainer.global_step

        def ended(trainer: Any, *told: Any) -> None:  # noqa: ANN401 - module, outputs, batch
            nonlocal seen
            if trainer.global_step > seen:
                seen = trainer.global_step
                self.step(told[2] if relevance else None)

        return trainer_callback(
            "lightning",
            "TrackImportance",
            {
                "on_train_start": start,
                "on_train_batch_end": ended,
                "state_dict": self.state_dict,
                "load_state_dict": self.load_state_dict,
            },
        )

    def transformers_callback(self, batches: Sequence[RawBatch] = ()) -> Any:  # noqa: ANN401 - as above
        """Return a callback for Hugging Face's `Trainer` that counts its steps.

        What was tracked is saved in the trainer's checkpoints, in a file of its own, and restored
        when training is resumed from one.

        Args:
            batches: that measure relevance, in turn, as the trainer does not tell which it trains
                on; none: magnitudes alone are tracked.

        Raises:
            UsageError: `transformers` is not installed.
        """

        def folder(arguments: Any, state: Any) -> Path:  # noqa: ANN401 - theirs
            return Path(arguments.output_dir) / f"checkpoint-{state.global_step}"

        def begins(arguments: Any, state: Any, *_: object, **__: object) -> None:  # noqa: ANN401 - theirs
            if not state.global_step:
                return
            given = arguments.resume_from_checkpoint
            path = (Path(given) if isinstance(given, str) else folder(arguments, state)) / _STATE
            if path.is_file():
                self.load_state_dict(torch.load(path, weights_only=True))
            else:
                told = f"training goes on at step {state.global_step}, but tracking from the start"
                warnings.warn(f"{told}: there is no {path}", stacklevel=2)

        def ended(*_: object, **__: object) -> None:
            look = self._steps // self._every
            self.step(batches[look % len(batches)] if batches else None)

        def saved(arguments: Any, state: Any, *_: object, **__: object) -> None:  # noqa: ANN401 - theirs
            torch.save(self.state_dict(), folder(arguments, state) / _STATE)

        return trainer_callback(
            "transformers",
            "TrackImportance",
            {"on_train_begin": begins, "on_step_end": ended, "on_save": saved},
        )

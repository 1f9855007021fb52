"""Weights set to zero while a network is trained; those cut too early come back."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from flexrel.core.running import unwrapped
from flexrel.core.trainers import trainer_callback
from flexrel.errors import UsageError
from flexrel.structure import weights_of_layers

Schedule = Literal["cubic", "one-shot"]


class GradualPruner:
    """Sets weights of linear and convolutional layers to zero over training, and holds them there.

        pruner = flexrel.training.GradualPruner(model, 0.9, begin=500, end=4000)
        for batch in loader:
            loss_of(model, batch).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()

    At each update the threshold is anew where the share of zeros that is due lies in the absolute
    weights of the whole network, so it follows their distribution. Before that, some that were cut
    come back, those with the largest gradients: what was cut too early is wanted again. They begin
    at zero, and are safe until the next update. Every layer keeps a weight. `flexrel.pack` makes a
    small file of the network, and `prune` keeps its zeros.

    Source:
        The cubic schedule: Zhu and Gupta, 2017 (arXiv 1710.01878). Regrowth by gradients, less and
        less along a cosine: Evci et al., 2020 (arXiv 1911.11134).
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        *,
        begin: int,
        end: int,
        every: int = 100,
        schedule: Schedule = "cubic",
        regrow: float = 0.3,
        keep: Sequence[str] = (),
    ) -> None:
        """Look up the weights; nothing of the model is changed yet.

        Args:
            model: that is trained, also inside `DistributedDataParallel` or `torch.compile`.
            sparsity: share of the weights that are zero in the end, in [0, 1).
            begin: the step of the first update.
            end: the step of the last that cuts more; what comes after is training with fixed zeros.
            every: so many steps between two updates.
            schedule: "cubic" cuts fast at first, then less and less; "one-shot" all at `begin`,
                after which updates only exchange.
            regrow: as many zeros come back as this share of the weights that are left, at the
                first update after `begin`; it falls to 0 at `end`. 0: what is cut stays cut, and no
                gradients are needed.
            keep: names of layers to leave alone.

        Raises:
            UsageError: an argument makes no sense, or there is nothing to cut.
        """
        numbers = 0 <= sparsity < 1, 0 <= regrow < 1, 0 < begin <= end, every >= 1
        if not all(numbers):
            raise UsageError(
                f"sparsity={sparsity}, regrow={regrow}, begin={begin}, end={end}, every={every}: "
                "shares are in [0, 1), and 0 < begin <= end"
            )
        if schedule not in get_args(Schedule):
            known = ", ".join(get_args(Schedule))
            raise UsageError(f"schedule {schedule!r} is not known; there are: {known}")
        self._model = unwrapped(model)
        layers = {n: w for n, w in weights_of_layers(self._model).items() if w is not None}
        unknown = sorted(set(keep) - layers.keys())
        if unknown:
            raise UsageError(f"keep={unknown[0]!r} is no linear or convolutional layer")
        self._names = tuple(dict.fromkeys(w for n, w in layers.items() if n not in keep))
        if not self._names:
            raise UsageError("the model has no linear or convolutional layer to cut weights of")
        self._sparsity, self._schedule, self._regrow = sparsity, schedule, regrow
        self._begin, self._end, self._every = begin, end, every
        self._steps = 0
        self._gone: dict[str, Tensor] = {}

    @property
    def sparsity(self) -> float:
        """The share of the weights that are held at zero now."""
        whole = sum(weight.numel() for weight in self._weights().values())
        return sum(int(gone.sum()) for gone in self._gone.values()) / whole

    def due(self, step: int) -> float:
        """Return the share of the weights that is zero after an update at a step."""
        if step < self._begin:
            return 0.0
        if self._schedule == "one-shot" or step >= self._end:
            return self._sparsity
        left = 1 - (step - self._begin) / (self._end - self._begin)
        return self._sparsity * (1 - left**3)

    def step(self) -> None:
        """Count a step of the optimizer; every so many change what is zero; hold the zeros.

        Raises:
            UsageError: zeros may come back, and there are no gradients to tell which: it was called
                after `zero_grad()`.
        """
        self._steps += 1
        since = self._steps - self._begin
        last = self._steps == self._end
        if (since >= 0 and self._steps <= self._end) and (since % self._every == 0 or last):
            self._update_()
        self.apply_()

    def apply_(self) -> None:
        """Set the weights that are cut to zero again."""
        with torch.no_grad():
            for name, gone in self._gone.items():
                self._model.get_parameter(name).masked_fill_(gone, 0)

    def _update_(self) -> None:
        weights = self._weights()
        grown = self._grown(weights)
        sizes = {name: weight.abs().float() for name, weight in weights.items()}
        for name, back in grown.items():
            sizes[name] = sizes[name].masked_fill(back, math.inf)
        for name, size in sizes.items():
            gone = self._gone.get(name)
            if gone is not None:  # those that stay cut go first
                size.masked_fill_(gone & ~grown[name], -1)
            size.view(-1)[size.argmax()] = math.inf  # a layer keeps one
        every = torch.cat([size.flatten() for size in sizes.values()])
        count = round(self.due(self._steps) * len(every))
        if count:
            order = every.argsort(stable=True)[:count]
            marked = torch.zeros_like(every, dtype=torch.bool).index_fill_(0, order, 1)
            marked &= every < math.inf
            parts = marked.split([size.numel() for size in sizes.values()])
            named = zip(sizes.items(), parts, strict=True)
            self._gone = {name: part.view(size.shape) for (name, size), part in named}

    def _grown(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which of the weights that are cut come back."""
        none = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items()}
        part = (self._steps - self._begin) / max(self._end - self._begin, 1)
        share = self._regrow * (1 + math.cos(math.pi * part)) / 2
        cut = sum(int(gone.sum()) for gone in self._gone.values())
        left = sum(weight.numel() for weight in weights.values()) - cut
        count = min(int(share * left), cut)
        if not count:
            return none
        found = []
        for name, weight in weights.items():
            gradient = self._model.get_parameter(name).grad
            if gradient is None:
                raise UsageError(
                    f"{name} has no gradient, which tells what was cut too early; call step() "
                    "before zero_grad(), or pass regrow=0"
                )
            size = gradient.abs().float().nan_to_num(0, 0, 0)
            found.append(size.masked_fill(~self._gone[name], -1).flatten().to(weight.device))
        every = torch.cat(found)
        best = every.argsort(descending=True, stable=True)[:count]
        marked = torch.zeros_like(every, dtype=torch.bool).index_fill_(0, best, 1)
        parts = marked.split([weight.numel() for weight in weights.values()])
        named = zip(weights.items(), parts, strict=True)
        return {name: back.view(weight.shape) for (name, weight), back in named}

    def _weights(self) -> dict[str, Tensor]:
        return {name: self._model.get_parameter(name).detach() for name in self._names}

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands, as tensors and a number, to be saved with the checkpoint."""
        return {"steps": self._steps, "gone": {n: gone.clone() for n, gone in self._gone.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, to the bit.

        Raises:
            UsageError: it is of another model.
        """
        weights = self._weights()
        for name, gone in state["gone"].items():
            if name not in weights or weights[name].shape != gone.shape:
                has = list(weights[name].shape) if name in weights else "missing"
                raise UsageError(
                    f"the pruner's state is of another model: {name} is {list(gone.shape)} there, "
                    f"{has} here"
                )
        self._steps = int(state["steps"])
        self._gone = {n: gone.to(weights[n].device, copy=True) for n, gone in state["gone"].items()}

    def lightning_callback(self) -> Any:  # noqa: ANN401 - Lightning is not installed for types
        """Return a callback for Lightning's `Trainer`; its checkpoints have the pruner's state.

        Raises:
            UsageError: neither `lightning` nor `pytorch_lightning` is installed.
        """
        seen = 0

        def start(trainer: Any, *_: object) -> None:  # noqa: ANN401 - Lightning's
            nonlocal seen
            seen = trainer.global_step

        def ended(trainer: Any, *_: object) -> None:  # noqa: ANN401 - as above
            nonlocal seen
            if trainer.global_step > seen:
                seen = trainer.global_step
                self.step()

        methods: dict[str, Callable[..., Any]] = {
            "on_train_start": start,
            "on_train_batch_end": ended,
            "state_dict": self.state_dict,
            "load_state_dict": self.load_state_dict,
        }
        return trainer_callback("lightning", "PruneGradually", methods)

    def transformers_callback(self) -> Any:  # noqa: ANN401 - as above
        """Return a callback for Hugging Face's `Trainer`; save `state_dict()` with its checkpoints.

        Raises:
            UsageError: `transformers` is not installed.
        """

        def stepped(*_: object, **__: object) -> None:
            self.step()

        return trainer_callback("transformers", "PruneGradually", {"on_optimizer_step": stepped})

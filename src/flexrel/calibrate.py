"""Runs the model over a calibration set, fills Statistics, and leaves no trace on the model.

One forward and one backward pass a batch. No gradient of a weight is formed, so the backward
pass does about half of a training step's work; each layer adds two products with its own
activations, summed at once to two vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.batches import Batch, RawBatch, read_batches
from flexrel.errors import ModelError, UsageError
from flexrel.records import Progress, silent
from flexrel.relevance import RULES, Folder, Layer, sum_patches, windows
from flexrel.running import call, is_class_scores, reason, undisturbed
from flexrel.statistics import SiteStatistics, Statistics

Start = Callable[[Any, Tensor | None], Tensor]  # (output, labels) -> one scalar per sample
OUTPUTS = ("auto", "label", "predicted", "norm")


def calibrate(
    model: nn.Module,
    batches: Iterable[RawBatch],
    rule: str = "gradient-input",
    output: str | Start = "auto",
    progress: Progress = silent,
) -> Statistics:
    """Return how much each unit mattered to the model's outputs on the calibration set.

    Args:
        model: any module whose Linear and Conv1d/2d/3d layers are called as modules. Runs in
            evaluation mode; hooks, modes, gradients and the random state are put back, also
            when an exception passes.
        batches: iterable of tensors, tuples `(inputs, labels)` or dicts of arguments; of any
            length, read once.
        rule: how relevance goes back through an operation; "gradient-input".
        output: what relevance starts from: "label", "predicted", "norm" (half the squared norm
            of the output, for outputs that are no class scores), or a callable
            `(output, labels) -> [samples]`; "auto" is "predicted" for class scores
            `[samples, classes]`, else "norm".
        progress: told after each batch.

    Returns:
        Sums over all samples; memory in proportion to units, not to weights.

    Raises:
        UsageError: an unknown rule or output, no batch, a NaN in a batch, labels missing.
        ModelError: the model does not run, no gradient reaches its layers, or an operation of
            it has none; what the iterable or the callable raises passes as it is.
    """
    if rule not in RULES:
        raise UsageError(f"rule {rule!r} is not known; there are: {', '.join(RULES)}")
    if isinstance(output, str) and output not in OUTPUTS:
        raise UsageError(
            f"output {output!r} is not known; pass {', '.join(OUTPUTS)}, or a callable "
            "(output, labels) -> one scalar per sample"
        )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
    total: dict[str, tuple[Tensor, Tensor]] = {}
    samples = 0
    watch = _Watch(layers)
    with _backward_to_inputs(model), watch:
        for batch in read_batches(batches, model):
            output, sums = watch.relevance_of(model, batch, output)
            for name, (inputs, outputs) in sums.items():
                old = total.get(name, (torch.zeros((), dtype=torch.float64),) * 2)
                total[name] = (old[0] + inputs, old[1] + outputs)
            samples += batch.samples
            progress("calibrating", batch.index + 1, None)
    if samples == 0:
        raise UsageError("the calibration set is empty; pass at least one batch")
    started = output if isinstance(output, str) else getattr(output, "__name__", "callable")
    sites = {
        name: SiteStatistics(
            inputs[0], outputs[0], inputs[1], outputs[1], getattr(layers[name], "groups", 1)
        )
        for name, (inputs, outputs) in sorted(total.items())
    }
    return Statistics(sites, float(samples), rule, started)


@contextmanager
def _backward_to_inputs(model: nn.Module) -> Iterator[None]:
    """Run the block undisturbed and with gradients, but none of a parameter's."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ModelError(
            "the network was made under torch.inference_mode, so nothing can go back through it; "
            "make or load it outside"
        )
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with ExitStack() as restore:
        restore.enter_context(undisturbed(model))
        restore.enter_context(torch.inference_mode(mode=False))
        restore.enter_context(torch.enable_grad())
        for parameter, wants in wanted:
            restore.callback(parameter.requires_grad_, wants)
            parameter.requires_grad_(False)
        yield


class _Watch:
    """Hooks on layers that turn one backward pass into sums of relevance; gone on leaving."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self._hooks = ExitStack()
        self._folder = Folder()
        self._sums: dict[str, list[Tensor | None]] = {}
        self._copy = False  # the model overwrites activations in place, so keep copies
        self._overwritten = False
        self._views = 0  # outputs that are views and have had no gradient yet
        self._constants: list[Tensor] = []  # outputs that depend on no input

    def __enter__(self) -> None:
        for name, layer in self._layers.items():
            hook = self._watcher(name, layer)
            self._hooks.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def relevance_of(
        self, model: nn.Module, batch: Batch, output: str | Start
    ) -> tuple[str | Start, dict[str, tuple[Tensor, Tensor]]]:
        """Return `output` resolved, and the batch's sums: layer -> (inputs, outputs).

        Each is `[2, *units]`, float64, on the CPU: sums, and sums of absolute values.
        """
        self._sums, self._constants = {}, []
        self._overwritten, self._views = False, 0
        given = {id(t): t.detach() for t in batch.tensors}
        roots = [t.requires_grad_() for t in given.values() if t.is_floating_point()]
        fresh = {key: t.clone() for key, t in given.items()}  # the model may overwrite its inputs
        output, scalars = _start(model, batch, fresh, output)
        ends = [*roots, *self._constants]
        try:
            reached = (
                torch.autograd.grad(scalars.sum(), ends, allow_unused=True)
                if ends and scalars.requires_grad
                else ()
            )
        except RuntimeError as error:
            raise ModelError(
                f"relevance can't go back through the model on batch {batch.index}: {reason(error)}"
            ) from error
        if all(gradient is None for gradient in reached[: len(roots)]):
            raise ModelError(
                "no gradient reaches the input: the output does not depend on a floating-point "
                "input, or the model runs under no_grad"
            )
        if (self._overwritten or self._views) and not self._copy:
            self._copy = True
            return self.relevance_of(model, batch, output)
        return output, self._collect(batch)

    def _collect(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (inputs, outputs) in self._sums.items():
            layer = self._layers[name]
            if outputs is None:
                continue  # the layer's result does not reach the output
            units = _no_relevance(layer) if inputs is None else inputs
            pair = (units.double().cpu(), outputs.double().cpu())
            if not all(bool(values.isfinite().all()) for values in pair):
                raise ModelError(f"relevance of {name!r} is NaN or infinite in batch {batch.index}")
            sums[name] = pair
        return sums

    def _watcher(self, name: str, layer: Layer) -> Callable[..., Tensor | None]:
        spatial = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)

        def watch(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
        ) -> Tensor | None:
            given: Tensor = args[0] if args else kwargs["input"]
            axes = given.ndim
            if spatial and axes != spatial + 2:
                raise ModelError(f"{name!r} got an input of {axes} axes; it must have a batch axis")
            if not torch.is_grad_enabled():
                return None  # the model wants no gradient here
            constant = not out.requires_grad
            if constant:  # the input has no relevance then, but the output still has
                leaf = out.detach().requires_grad_()
                self._constants.append(leaf)
                out = leaf.clone()
            self._sums.setdefault(name, [None, None])
            channel = axes - 1 if spatial == 0 else 1
            whole = (channel,) if spatial == 0 else tuple(range(1, axes))
            if given.requires_grad:
                self._follow(name, 0, given, whole)
            self._follow(name, 1, out, (channel,))
            if self._copy and _is_view(out):
                return out.clone()  # else, once overwritten, its gradient never comes
            return out if constant else None

        return watch

    def _follow(self, name: str, side: int, activation: Tensor, keep: tuple[int, ...]) -> None:
        """When the activation's gradient comes, add its relevance to the layer's sums."""
        values = activation.detach().clone() if self._copy else activation.detach()
        version = values._version  # noqa: SLF001 - torch has no public name for it
        view = int(side == 1 and _is_view(activation))
        self._views += view

        def arrive(gradient: Tensor | None) -> None:
            self._overwritten |= values._version != version  # noqa: SLF001
            self._views -= view
            if gradient is None:  # an operation of the user's says that none goes back
                return
            sums = self._folder.fold(values, gradient, keep)
            if side == 0:  # at once: the next call may read an input of another size
                sums = _input_units(self._layers[name], sums)
            before = self._sums[name][side]
            self._sums[name][side] = sums if before is None else before + sums

        activation.register_hook(arrive)


def _is_view(tensor: Tensor) -> bool:
    return bool(tensor._is_view())  # noqa: SLF001 - torch has no public name for it


def _no_relevance(layer: Layer) -> Tensor:
    """Return `[2, *units]` zeros: the layer is fed with a constant, which has no relevance."""
    if isinstance(layer, nn.Linear):
        return torch.zeros(2, layer.in_features)
    return torch.zeros(2, layer.in_channels, *layer.kernel_size)


def _input_units(layer: Layer, sums: Tensor) -> Tensor:
    """Return `[2, *units]`: the input's relevance for each unit that a weight reads."""
    if isinstance(layer, nn.Linear):
        return sums
    return torch.stack([sum_patches(part, windows(layer)) for part in sums])


def _start(
    model: nn.Module, batch: Batch, fresh: Mapping[int, Tensor], output: str | Start
) -> tuple[str | Start, Tensor]:
    """Run the model and return what relevance starts from, resolved, with its scalars."""
    args = tuple(fresh.get(id(value), value) for value in batch.args)
    kwargs = {key: fresh.get(id(value), value) for key, value in batch.kwargs.items()}
    result = call(model, Batch(batch.index, args, kwargs, batch.labels))
    if isinstance(output, str):
        if not isinstance(result, Tensor) or not result.is_floating_point():
            raise ModelError(
                f"the model returns a {type(result).__name__}, not a tensor of scores; "
                "pass output= as a callable (output, labels) -> one scalar per sample"
            )
        scores = is_class_scores(result)
        if output == "auto":
            output = "predicted" if scores else "norm"
        if output != "norm" and not scores:
            raise ModelError(
                f"output={output!r} needs class scores [samples, classes], but the model returns "
                f"{list(result.shape)}; use 'norm' or a callable"
            )
        return output, _scalars(result, batch, output)
    scalars = output(result, batch.labels)
    if not isinstance(scalars, Tensor) or scalars.shape != (batch.samples,):
        found = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise UsageError(f"output= must return [{batch.samples}] scalars, but returned {found}")
    return output, scalars


def _scalars(result: Tensor, batch: Batch, output: str) -> Tensor:
    if output == "norm":
        return result.square().sum() / 2  # of all samples: only the sum of scalars matters
    if output == "predicted":
        return result.max(dim=1).values
    if batch.labels is None:
        raise UsageError(
            f"output='label' needs labels, but batch {batch.index} has none; pass tuples "
            "(inputs, labels), or use output='predicted'"
        )
    labels = batch.labels
    whole = labels.shape == result.shape[:1] and not labels.is_floating_point()
    if not whole or not _within(labels, result.shape[1]):
        raise UsageError(
            f"labels of batch {batch.index} must be {len(result)} whole numbers "
            f"in 0 ... {result.shape[1] - 1}"
        )
    return result.gather(1, labels.long()[:, None]).squeeze(1)


def _within(labels: Tensor, classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())

"""A model that is not ours: run as meant, copied, told from others; no trace of it stays."""

import copy
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.input_forms import better_form
from flexrel.core.wording import in_everyday_words
from flexrel.errors import FlexrelError, ModelError

_NONE: Mapping[int, Tensor] = MappingProxyType({})


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`, `DataParallel` or `DistributedDataParallel`."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    dynamo = sys.modules.get("torch._dynamo")  # not loaded unless something was compiled
    compiled = getattr(dynamo, "OptimizedModule", None)  # another thread may be loading it
    if compiled is not None and isinstance(model, compiled):
        return unwrapped(model.get_submodule("_orig_mod"))
    return unwrapped(model.get_submodule("module")) if isinstance(model, wrappers) else model


def duplicate(
    model: nn.Module, *, share: bool = False, instead: Mapping[int, Tensor] = _NONE
) -> nn.Module:
    """Return a deep copy of the model; with `share`, one of the same parameters and buffers.

    Args:
        model: not changed.
        share: whether parameters and buffers are the model's own.
        instead: of a tensor's `id`, what the copy has in its place.

    Raises:
        ModelError: it can't be copied.
    """
    tensors = (*model.parameters(), *model.buffers()) if share else ()
    try:
        with warnings.catch_warnings():  # torch deprecates a part of its own exported programs
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            return copy.deepcopy(model, {**instead, **{id(tensor): tensor for tensor in tensors}})
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the model can't be copied: {reason(error)}") from error


def fingerprint(model: nn.Module) -> str:
    """Return 64 hex digits that are the same for two models of the same graph and names.

    Names and kinds of all modules, the settings that torch's own tell of themselves, and names
    and shapes of all parameters and buffers count; the order of these, values, precision, device
    and mode don't, so that a model's copies on several devices, and before and after training,
    have one fingerprint.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    content = {
        "modules": [
            [name, type(m).__qualname__, m.extra_repr() if type(m) in vars(nn).values() else ""]
            for name, m in model.named_modules()
        ],
        "tensors": sorted([name, list(tensor.shape)] for name, tensor in tensors),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block with the model in evaluation mode, uncompiled; put modes and all back."""
    modes = [(module, module.training) for module in model.modules()]
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=cuda), ExitStack() as eager:
            if "torch._dynamo" in sys.modules:  # else nothing of it can be compiled
                eager.enter_context(torch.compiler.set_stance("force_eager"))
            for module, _ in modes:
                module.training = False  # `eval()` may do more, which nothing would undo
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def backward_to_inputs(model: nn.Module) -> Iterator[None]:
    """Run the block undisturbed and with gradients, but none of a parameter's.

    Raises:
        ModelError: the model was made under inference mode.
    """
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


def rooted(batch: Batch) -> tuple[list[Tensor], Batch]:
    """Return where a backward pass from the batch ends, and the batch to run for one.

    Returns:
        The floating-point inputs, which ask for gradients; and the batch with a copy of each
        tensor, since the model may overwrite what it is given.
    """
    given = {id(tensor): tensor.detach() for tensor in batch.tensors}
    roots = [tensor.requires_grad_() for tensor in given.values() if tensor.is_floating_point()]
    fresh = {key: tensor.clone() for key, tensor in given.items()}
    return roots, batch.mapped(lambda value: fresh.get(id(value), value))


def call(model: nn.Module, batch: Batch) -> Any:  # noqa: ANN401 - whatever the model returns
    """Return the model's output for the batch.

    Raises:
        ModelError: the model can't run on it; says the shapes given and its own message.
    """
    try:
        return model(*batch.args, **batch.kwargs)
    except FlexrelError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in batch.tensors)
        raise ModelError(
            f"the model does not run on batch {batch.index} (inputs of shape {shapes}): "
            f"{reason(error)}{better_form(model, batch)}"
        ) from error


def reason(error: Exception) -> str:
    """Return an error's message in one line: its first, or else its type; in everyday words."""
    return in_everyday_words(next(iter(str(error).strip().splitlines()), type(error).__name__))


def tensors_of(value: Any) -> list[Tensor]:  # noqa: ANN401 - what a model or operation returns
    """Return the tensors in a value, in tuples, lists, mappings and dataclasses too."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, list | tuple) else []


def scores_in(result: Any) -> Any:  # noqa: ANN401 - whatever the model returns
    """Return the "logits" or "last_hidden_state" of a mapping; else the one tensor of numbers.

    The result itself, where there are several or none.
    """
    if isinstance(result, Mapping):
        for key in ("logits", "last_hidden_state"):
            if key in result:
                return result[key]
    numbers = [tensor for tensor in tensors_of(result) if tensor.is_floating_point()]
    return numbers[0] if len(numbers) == 1 else result


def is_class_scores(output: object) -> bool:
    """Return whether a model's output is `[samples, classes]`, of at least two classes."""
    rank = 2
    return isinstance(output, Tensor) and output.ndim == rank and output.shape[1] > 1

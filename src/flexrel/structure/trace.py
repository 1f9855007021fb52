"""What a model does to its tensors, seen from below: one record for each ATen operation.

The model simply runs, once, under a dispatch mode. Nothing is compiled and no Python is
parsed, so control flow, functional calls, in-place operations and reused modules need no
special care, and every spelling of an operation arrives as the same ATen operation.
"""

import contextlib
import functools
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from flexrel.core import running
from flexrel.core.batches import Batch
from flexrel.core.running import call, tensors_of, undisturbed
from flexrel.core.wording import everyday
from flexrel.errors import ModelError
from flexrel.structure.modules import first_of, module_lengths, place_in


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the trace; two refs of one tensor have the same key."""

    key: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One ATen call, with each tensor replaced by its Ref."""

    name: str  # with its namespace, as "aten.convolution"
    args: Mapping[str, Any]  # those given, by their names in the operation's schema
    inputs: tuple[Ref, ...]  # all tensors that go in, in lists too
    outputs: tuple[Ref, ...]
    pointwise: bool  # whether torch says that it works entry by entry
    module: str  # the innermost that runs it
    line: str  # of the user's code that called it, as "net.py:12"; "" if there is none

    @property
    def told(self) -> str:
        """What a user calls it, and where it is: "softmax (module 'gate', net.py:12)"."""
        where = ", ".join([*([f"module {self.module!r}"] if self.module else []), self.line])
        where = where.removesuffix(", ")
        return f"{everyday(self.name)} ({where})" if where else everyday(self.name)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module."""

    module: str  # as in `model.named_modules()`
    given: Ref | None  # its first argument, if that is a tensor
    made: Ref | None  # what it returned, if that is one tensor, in a tuple or not
    place: tuple[int, int] | None  # of the tensor: which entry of a tuple of how many
    operations: range  # those of the trace that it ran


@dataclass(frozen=True, slots=True)
class Trace:
    """All that a model did for one batch."""

    operations: tuple[Operation, ...]
    parameters: Mapping[int, str]  # key of a Ref -> name; parameters and buffers, tied ones once
    owned: tuple[Ref, ...]  # those parameters and buffers
    trained: frozenset[str]  # the names of the parameters among them
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    samples: int  # that multiply-adds are divided by: 1 of a batch that stays whole
    calls: tuple[Call, ...] = ()  # of modules, in the order in which they returned
    nodes: Mapping[str, tuple[Ref, ...]] = field(default_factory=dict)  # of a program's graph
    memory: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # key of a Ref -> its
    # storage, which views and writes in place share, by a number of its own; and its bytes
    lengths: Mapping[str, frozenset[int]] = field(
        default_factory=dict
    )  # module -> as `module_lengths`


def trace(model: nn.Module, batch: Batch) -> Trace:
    """Run the model on the batch, in evaluation mode and without gradients, and record it.

    Raises:
        ModelError: the model does not run on the batch, or returns no tensor.
    """
    recorder = _Recorder(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    parameters = {recorder.ref(tensor).key: name for name, tensor in reversed(named)}
    owned = tuple({ref.key: ref for _, tensor in named if (ref := recorder.ref(tensor))}.values())
    inputs = tuple(recorder.ref(tensor) for tensor in batch.tensors)
    run, nodes = model, {}
    if isinstance(model, fx.GraphModule):
        run = watched = _Watched(model, recorder)
        nodes = watched.nodes
    with undisturbed(model), torch.no_grad(), slow_path(), recorder.watching(), recorder:
        result = call(run, batch)
    outputs = tuple(recorder.ref(tensor) for tensor in tensors_of(result))
    if not outputs:
        raise ModelError(
            f"the model returns a {type(result).__name__} in which no tensor is found; "
            "return a tensor, or a tuple, list or dict of tensors"
        )
    return Trace(
        tuple(recorder.operations),
        parameters,
        owned,
        frozenset(name for name, _ in model.named_parameters()),
        inputs,
        outputs,
        1 if batch.whole else batch.samples,
        tuple(recorder.calls),
        nodes,
        recorder.memory(),
        {name: module_lengths(module) for name, module in model.named_modules()},
    )


@contextmanager
def slow_path() -> Iterator[None]:
    """Keep torch's transformer layers from running as one operation, which has no rule."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Recorder(TorchDispatchMode):
    """Writes down every operation that runs while it is active, and in which module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        self._model = model
        self._running: list[tuple[str, Ref | None, int]] = [("", None, 0)]  # outermost first
        self._alive: dict[int, Tensor] = {}  # so that no id is used twice

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module runs, in the block."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                for handle in (
                    module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True),
                    module.register_forward_hook(self._leave, always_call=True),
                ):
                    hooks.callback(handle.remove)
            yield

    def _enter(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        first = first_of(args, kwargs)
        given = self.ref(first) if isinstance(first, Tensor) else None
        self._running.append((name, given, len(self.operations)))

    def _leave(self, _: nn.Module, args: tuple[Any, ...], result: Any) -> None:  # noqa: ANN401, ARG002
        name, given, start = self._running.pop()
        tensor, place = place_in(result)
        made = None if tensor is None else self.ref(tensor)
        self.calls.append(Call(name, given, made, place, range(start, len(self.operations))))

    def ref(self, tensor: Tensor) -> Ref:
        self._alive.setdefault(id(tensor), tensor)
        return Ref(id(tensor), tuple(tensor.shape))

    def memory(self) -> dict[int, tuple[int, int]]:
        """Return where each tensor lies: its storage's number, and bytes."""
        found: dict[int, tuple[int, int]] = {}
        for key, tensor in self._alive.items():
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                found[key] = storage._cdata, storage.nbytes()  # noqa: SLF001 - torch's own number
        return found

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an OpOverload
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as the operation
        if is_made_of_others(func):
            with self:
                return run_as_others(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        outputs = tuple(self.ref(tensor) for tensor in tensors_of(result))
        names = (argument.name for argument in func._schema.arguments)  # noqa: SLF001
        given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
        self.operations.append(
            Operation(
                f"{func.namespace}.{func.overloadpacket.__name__}",
                pytree.tree_map_only(Tensor, self.ref, given),
                tuple(self.ref(tensor) for tensor in tensors_of(list(given.values()))),
                outputs,
                torch.Tag.pointwise in func.tags,
                self._running[-1][0],
                _line(),
            )
        )
        return result


_PACKAGES = (
    Path(__file__).parents[1],
    *(Path(module.__file__ or "").parent for module in (torch, jaxtyping)),
)
_OURS = ("<", *(f"{folder}{os.sep}" for folder in _PACKAGES))  # "<" begins names of made code
_ON_THE_WAY = frozenset({contextlib.__file__, functools.__file__})


def _line() -> str:
    """Return the line that runs of the code that is neither torch's nor ours, the innermost."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file == running.__file__ and frame.f_code.co_name == running.call.__name__:
            return ""  # from there on it is who called us
        if not file.startswith(_OURS) and file not in _ON_THE_WAY:
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


_MADE_OF_OTHERS = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001


def is_made_of_others(func: torch._ops.OpOverload) -> bool:
    """Return whether torch runs the operation as others; only inference mode shows it whole."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _MADE_OF_OTHERS)  # noqa: SLF001
    )


def run_as_others(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:  # noqa: ANN401 - as the operation
    """Return the result of an operation that is made of others, which are run one by one."""
    return func._op_dk(_MADE_OF_OTHERS, *args, **kwargs)  # noqa: SLF001


class _Watched(nn.Module):
    """Runs a graph node by node, and knows the tensors that each makes."""

    def __init__(self, program: fx.GraphModule, recorder: _Recorder) -> None:
        super().__init__()
        self.nodes: dict[str, tuple[Ref, ...]] = {}
        self._steps = _Steps(program, recorder, self.nodes)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the program's
        flat = pytree.tree_leaves((args, kwargs))
        return self._steps.run(*flat, enable_io_processing=False)


class _Steps(fx.Interpreter):
    def __init__(
        self, program: fx.GraphModule, recorder: _Recorder, nodes: dict[str, tuple[Ref, ...]]
    ) -> None:
        super().__init__(program)
        self._recorder, self._nodes = recorder, nodes

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - whatever it makes
        value = super().run_node(n)
        self._nodes[n.name] = tuple(self._recorder.ref(tensor) for tensor in tensors_of(value))
        return value

"""Follows a model while it runs: which layers were called on what, and how relevance goes back.

A mode of torch's function overrides sees every call of a torch operation, from modules, functions,
methods and operators alike, before autograd does. That is the place where an operation's backward
pass can be replaced by a rule; why this mechanism: `docs/relevance.md`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.errors import ModelError
from flexrel.relevance.backward import Back, modified
from flexrel.relevance.between import Between, Made
from flexrel.relevance.fold import Folder
from flexrel.relevance.held import Held, Holder
from flexrel.relevance.layer import Affine
from flexrel.relevance.ledger import Ledger
from flexrel.relevance.pads import Pads
from flexrel.relevance.rules import ByName, GradientInput, Rule
from flexrel.relevance.sums import LayerSums, sums_for
from flexrel.relevance.suspect import Suspect
from flexrel.tracing import READERS, AffineCall, Function, Op, OpRecorder, Owner, Weights

WEIGHTED = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
)


class Follow(OpRecorder):
    """Watches the model's layers, and makes its operations follow the rule.

    One is made for each forward pass: `with follow.running(): model(...)`. After the backward
    pass, `sums` has what each layer got.

    Args:
        model: whose parameters name the layers.
        rule: how relevance goes back through a layer.
        folder: sums relevance up.
        copy: keep copies of activations, for a model that overwrites them unseen.
        ledger: books the balance of each operation.
        suspect: looks for the operation that makes a NaN.

    Attributes:
        sums: layer -> its sums over this batch, in the order of the first call.
        leaves: results that depend on no input, such as an embedding's: relevance ends there.
        raised: what the rule raised, if it did.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        folder: Folder,
        *,
        copy: bool = False,
        ledger: Ledger | None = None,
        suspect: Suspect | None = None,
    ) -> None:
        super().__init__()
        self.sums: dict[str, LayerSums] = {}
        self.leaves: list[Tensor] = []
        self.raised: Exception | None = None
        self._model, self._rule, self._folder, self._copy = model, rule, folder, copy
        self._ledger, self._suspect = ledger, suspect
        self._weights = Weights(model)
        self._holder = Holder(copy=copy)
        self._pads = Pads()
        self._where: list[tuple[str, nn.Module]] = []  # the modules that run now, outermost first
        self._calls = 0
        self._overwritten = False
        self._lost: list[bool | Tensor] = []  # likewise: looked at in the end, not waited for
        self._waiting = 0  # views whose gradient has not come
        plain = isinstance(rule, GradientInput)
        self._between = None if plain else Between(self._native, self._modified, self._fold_norm)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follow what runs in the block; hooks on modules tell which of them runs."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                for handle in (
                    module.register_forward_pre_hook(self._entering(name)),
                    module.register_forward_hook(self._leaving, always_call=True),
                ):
                    hooks.callback(handle.remove)
            hooks.callback(self._forget)
            with self:
                yield

    def _forget(self) -> None:
        """Let go of tensors: they lead to the graph, which leads back here."""
        self._pads.forget()
        self._holder.forget()
        if self._between is not None:
            self._between.forget()
        self._between = None

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, _: self._where.append((name, module))

    def _leaving(self, *_: Any) -> None:  # noqa: ANN401
        self._where.pop()

    @property
    def unsure(self) -> bool:
        """Whether the model overwrote what was needed, unseen; do it again with `copy=True`."""
        if self._copy:
            return False
        lost = self._holder.lost or self._overwritten or self._waiting > 0
        return lost or any(map(bool, self._lost))

    @property
    def _place(self) -> str:
        return self._where[-1][0] if self._where else ""

    def ran(self, step: Op) -> Any:  # noqa: ANN401
        """Run one operation of the model."""
        if not torch.is_grad_enabled():
            return super().ran(step)
        name, func, args, kwargs, given = step.name, step.func, step.args, step.kwargs, step.given()
        stands_in = self._holder.reads(name, given)
        result = self._run(name, func, args, kwargs)
        if stands_in:
            self._holder.rectified(given[0], result)
        if self._suspect is not None:
            self._suspect.saw(name, self._place, given, result)
        return result

    def _run(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        if name == "embedding":
            return self._embedding(func, args, kwargs)
        reader = READERS.get(name)
        call = reader(args, kwargs) if reader else None
        owner = self._owner(call) if call else None
        if call is not None and owner is not None:
            return self._layer(name, call, owner, func, args, kwargs)
        run = self._between or self._native
        result = run(name, func, args, kwargs)
        if name in {"pad", "constant_pad_nd"}:
            self._pads.note(result, *args, **kwargs)
        return result

    def _native(
        self,
        name: str,
        func: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rule: str = "gradient",
    ) -> Any:  # noqa: ANN401
        """Run an operation with its plain gradient; `rule` is what the report calls that."""
        if self._ledger is None:
            return func(*args, **kwargs)
        return self._ledger.native((self._place, name, rule), func, args, kwargs)

    def _modified(self, name: str, rule: str, inputs: Tensor, value: Tensor, back: Back) -> Tensor:
        """Return `value` as a function of `inputs` through which relevance goes by `back`."""
        before = self._holder.hold(inputs, read=True)
        cell: list[Held] = []
        go_back = partial(self._go_back, before, cell, back)
        booked: Callable[[Tensor], Tensor] = go_back
        if self._ledger is not None:
            key = (self._place, name, rule)
            booked = self._ledger.modified(key, inputs, value, go_back)
        outputs = modified(inputs, value, booked)
        cell.append(self._holder.hold(outputs))
        return outputs

    def _go_back(self, before: Held, cell: list[Held], back: Back, gradient: Tensor) -> Tensor:
        after = cell.pop()
        self._overwritten |= before.overwritten
        self._lost.append(after.is_lost(gradient))
        return back(gradient, before.value, after.value)

    def _owner(self, call: AffineCall) -> Owner | None:
        """Return whose weight the call is made with: a parameter's, or the running module's."""
        found = self._weights.owner(call.weight)
        if found is None and self._where and not call.weight.requires_grad:
            name, module = self._where[-1]
            if isinstance(module, WEIGHTED) and call.weight.shape == module.weight.shape:
                return Owner(name)  # its weight is computed from other parameters
        return found

    def _layer(
        self,
        name: str,
        call: AffineCall,
        owner: Owner,
        func: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Run a layer, and watch what relevance comes to its input and output."""
        affine = Affine(owner.name, call.weight, call.bias, call.geometry)
        axes = call.inputs.ndim
        if call.geometry is not None and axes != call.weight.ndim:
            raise ModelError(
                f"{owner.name!r} got an input of {axes} axes; it must have a batch axis"
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(call.inputs):  # noqa: SLF001
            raise ModelError(
                f"{owner.name!r} is called inside torch.vmap or another function transform, where "
                "its activations can't be followed; call it on the whole batch"
            )
        here = sums_for(owner, affine)  # a tied weight may be used either way round
        sums = self.sums.setdefault(owner.name, here)
        at, self._calls = self._calls, self._calls + 1
        if self._between is None or not call.inputs.requires_grad:
            outputs: Tensor = self._native(name, func, args, kwargs)
        else:
            with torch.no_grad():
                value = func(*args, **kwargs)
                affine = affine.cast(value.dtype)  # another one under autocast
            back = partial(self._by_rule, affine, at)
            outputs = self._modified(name, self._told(affine), call.inputs, value, back)
            self._between.made(outputs, affine, call.inputs, at)
        if call.inputs.requires_grad:
            self._follow_input(call, affine, sums, transposed=here.transposed)
        channel = axes - 1 if call.geometry is None else 1
        return self._follow_output(outputs, sums, channel, transposed=here.transposed)

    def _by_rule(
        self, affine: Affine, at: int, gradient: Tensor, inputs: Tensor, outputs: Tensor
    ) -> Tensor:
        placed = replace(affine, depth=at / max(self._calls - 1, 1))
        try:
            found = self._rule(placed, inputs.to(outputs.dtype), outputs, gradient)
        except Exception as error:
            self.raised = error
            raise
        return found.to(inputs.dtype)

    def _told(self, affine: Affine) -> str:
        """Return the name of the layer's rule."""
        rule = self._rule
        return (rule.of(affine.name) if isinstance(rule, ByName) else rule).name

    def _fold_norm(self, made: Made, affine: Affine, value: Tensor) -> Tensor:
        """Attach a batch norm's result to the input of the layer before it."""
        back = partial(self._by_rule, affine, made.at)
        outputs = self._modified("batch_norm", self._told(affine), made.inputs, value, back)
        sums = self.sums[affine.name]
        return self._follow_output(outputs, sums, 1, transposed=sums.transposed)

    def _follow_input(
        self, call: AffineCall, affine: Affine, sums: LayerSums, *, transposed: bool
    ) -> None:
        tensor, axes, kept = self._pads.undone(call.inputs, affine.axes())
        keep = tuple(range(1, tensor.ndim)) if call.geometry else (tensor.ndim - 1,)
        add = partial(sums.add_input, self._folder, keep, axes, transposed)
        self._when_back(tensor, add, kept=kept, read=True)

    def _follow_output(
        self, outputs: Tensor, sums: LayerSums, channel: int, *, transposed: bool
    ) -> Tensor:
        """Watch a layer's output; return it, or what the model is to go on with in its place."""
        constant = not outputs.requires_grad  # its input has no relevance, but it still has
        if constant:
            leaf = outputs.detach().requires_grad_()
            self.leaves.append(leaf)
            outputs = leaf.clone()
        add = partial(sums.add_output, self._folder, channel, transposed)
        self._when_back(outputs, add, view=_is_view(outputs))
        if self._copy and _is_view(outputs):
            return outputs.clone()  # else, once overwritten, its gradient never comes
        return outputs

    def _embedding(
        self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Look rows up; relevance ends there: it is that of the rows, and of their features."""
        weight = args[0] if args else kwargs["weight"]
        indices = args[1] if len(args) > 1 else kwargs["indices"]
        outputs: Tensor = func(*args, **kwargs)
        owner = self._weights.owner(weight)
        if owner is None or outputs.requires_grad:
            return outputs
        sums = self.sums.setdefault(
            owner.name, LayerSums(owner, (len(weight),), transposed=True, groups=1)
        )
        outputs = self._follow_output(outputs, sums, outputs.ndim - 1, transposed=True)
        self._when_back(outputs, partial(sums.add_lookups, indices.detach()))
        return outputs

    def _when_back(
        self,
        tensor: Tensor,
        add: Callable[[Tensor, Tensor], None],
        *,
        kept: Tensor | None = None,
        read: bool = False,
        view: bool = False,
    ) -> None:
        """Call `add` with the tensor's present value and its gradient, once that is known.

        `kept` is where the same value is kept anyway, if that is not the tensor itself; `read`:
        the operation at hand reads the tensor.
        """
        if kept is None or kept is tensor:
            cell = [self._holder.hold(tensor, read=read)]
        else:
            cell = [Held(kept, copy=self._copy)]
        self._waiting += view
        tensor.register_hook(partial(self._arrive, cell, add, view))

    def _arrive(
        self,
        cell: list[Held],
        add: Callable[[Tensor, Tensor], None],
        view: bool,  # noqa: FBT001 - of a partial
        gradient: Tensor | None,
    ) -> None:
        held = cell.pop()
        self._waiting -= view
        if gradient is None:  # an operation of the user's says that none goes back
            self._overwritten |= held.overwritten
        else:
            self._lost.append(held.is_lost(gradient))
            add(held.value, gradient)


def _is_view(tensor: Tensor) -> bool:
    return bool(tensor._is_view())  # noqa: SLF001 - torch has no public name for it

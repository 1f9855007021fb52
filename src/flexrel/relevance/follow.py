"""Follows a model while it runs: which layers were called on what, and how relevance goes back.

Where an operation runs is the place where its backward pass can be replaced by a rule; why this
mechanism: `docs/relevance.md`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.errors import ModelError
from flexrel.relevance.backward import Back, modified
from flexrel.relevance.balance import Ledger, NaNFinder
from flexrel.relevance.layer import Affine, Padding, padding_of, windows_of
from flexrel.relevance.operations import LayerOutput, OperationRules
from flexrel.relevance.rules import ByName, GradientInput, Rule
from flexrel.relevance.saved import SavedActivation, SavedActivations
from flexrel.relevance.sums import LayerShape, LayerSums, Scratch, shape_of
from flexrel.tracing import AffineCall, Op, OpRecorder, Owner, ParameterOwners, affine_call

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_WEIGHTED = nn.Linear | _CONVOLUTIONS | _TRANSPOSED

Add = Callable[[Tensor, Tensor], None]  # an activation and its modified gradient, to some sums


class RelevanceRecorder(OpRecorder):
    """Watches the model's layers, and makes its operations follow the rule.

    One is made for each forward pass: `with recorder.running(): model(...)`. After the backward
    pass, `sums` has what each layer got.

    Args:
        model: whose parameters name the layers.
        rule: how relevance goes back through a layer.
        scratch: as of `sum_relevance`.
        copy: keep copies of activations, for a model that overwrites them unseen.
        ledger: books the balance of each operation.
        nan_finder: looks for the operation that makes a NaN.

    Attributes:
        sums: layer -> its sums over this batch, in the order of the first call.
        leaves: results that depend on no input, such as an embedding's: relevance ends there.
        raised: what the rule raised, if it did.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        scratch: Scratch,
        *,
        copy: bool = False,
        ledger: Ledger | None = None,
        nan_finder: NaNFinder | None = None,
    ) -> None:
        super().__init__()
        self.sums: dict[str, LayerSums] = {}
        self.leaves: list[Tensor] = []
        self.raised: Exception | None = None
        self._model, self._rule, self._scratch, self._copy = model, rule, scratch, copy
        self._ledger, self._nan_finder = ledger, nan_finder
        self._owners = ParameterOwners(model)
        self._saved = SavedActivations(copy=copy)
        self._paddings = WeakTensorKeyDictionary()  # a padded tensor -> Padding
        self._names: dict[nn.Module, str] = {}
        self._modules: list[nn.Module] = []  # that run now, outermost first
        self._calls = 0
        self._overwritten = False  # something, unseen
        self._lost: list[bool | Tensor] = []  # likewise: looked at in the end, not waited for
        self._waiting = 0  # views whose gradient has not come
        self._operations: OperationRules | None = None
        if not isinstance(rule, GradientInput):
            self._operations = OperationRules(self._natively, self._modified, self._fold_norm)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follow what runs in the block; hooks on modules tell which of them runs."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                self._names[module] = name
                entered = module.register_forward_pre_hook(self._enter)
                hooks.callback(entered.remove)
                left = module.register_forward_hook(self._leave, always_call=True)
                hooks.callback(left.remove)
            try:
                with self:
                    yield
            finally:  # let go of tensors: they lead to the graph, which leads back here
                self._saved.forget()
                self._paddings.clear()
                if self._operations is not None:
                    self._operations.forget()
                self._operations = None

    def _enter(self, module: nn.Module, _: Any) -> None:  # noqa: ANN401
        self._modules.append(module)

    def _leave(self, *_: Any) -> None:  # noqa: ANN401
        self._modules.pop()

    @property
    def unsure(self) -> bool:
        """Whether the model overwrote what was needed, unseen; do it again with `copy=True`."""
        if self._copy:
            return False
        lost = self._saved.lost or self._overwritten or self._waiting > 0
        return lost or any(map(bool, self._lost))

    @property
    def _place(self) -> str:
        return self._names[self._modules[-1]] if self._modules else ""

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run one operation of the model."""
        if not torch.is_grad_enabled():
            return super().run(op)
        given = op.given()
        rectifies = self._saved.before(op, given)
        call = affine_call(op)
        owner = self._owner(call) if call is not None else None
        if call is not None and owner is not None:
            result = self._layer(op, call, owner)
        elif op.name == "embedding":
            result = self._embedding(op)
        else:
            result = (self._operations or self._natively)(op)
        if op.name in {"pad", "constant_pad_nd"} and (padding := padding_of(op, result)):
            self._paddings[result] = padding
        if rectifies:
            self._saved.rectified(given[0], result)
        if self._nan_finder is not None:
            self._nan_finder.look(op, self._place, result)
        return result

    def _natively(self, op: Op, rule: str = "gradient") -> Any:  # noqa: ANN401
        """Run an operation with its plain gradient; `rule` is what the report calls that."""
        if self._ledger is None:
            return super().run(op)
        return self._ledger.native((self._place, op.name, rule), op)

    def _modified(self, name: str, rule: str, inputs: Tensor, value: Tensor, back: Back) -> Tensor:
        """Return `value` as a function of `inputs` through which relevance goes by `back`."""
        before = self._saved.save(inputs, read=True)
        cell: list[SavedActivation] = []
        go_back = partial(self._go_back, before, cell, back)
        booked: Callable[[Tensor], Tensor] = go_back
        if self._ledger is not None:
            key = (self._place, name, rule)
            booked = self._ledger.modified(key, inputs, value, go_back)
        outputs = modified(inputs, value, booked)
        cell.append(self._saved.save(outputs))
        return outputs

    def _go_back(
        self, before: SavedActivation, cell: list[SavedActivation], back: Back, gradient: Tensor
    ) -> Tensor:
        after = cell.pop()
        self._overwritten |= before.overwritten
        self._lost.append(after.is_lost(gradient))
        return back(gradient, before.value, after.value)

    def _owner(self, call: AffineCall) -> Owner | None:
        """Return whose weight the call is made with: a parameter's, or the running module's."""
        found = self._owners.owner(call.weight)
        if found is None and self._modules and not call.weight.requires_grad:
            module = self._modules[-1]
            if isinstance(module, _WEIGHTED) and call.weight.shape == module.weight.shape:
                return Owner(self._names[module])  # its weight is computed from other parameters
        return found

    def _layer(self, op: Op, call: AffineCall, owner: Owner) -> Tensor:
        """Run a layer, and watch what relevance comes to its input and output."""
        axes = call.inputs.ndim
        if call.geometry is not None and axes != call.weight.ndim:
            raise ModelError(
                f"{owner.name!r} got an input of {axes} axes; it must have a batch axis, as "
                "torch.utils.data.DataLoader(samples, batch_size=64) gives it"
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(call.inputs):  # noqa: SLF001
            raise ModelError(
                f"{owner.name!r} is called inside torch.vmap or another function transform, where "
                "its activations can't be followed; call it on the whole batch"
            )
        sums, sides = self._sums_for(shape_of(owner, call))
        outputs = self._layer_outputs(op, call, owner)
        channel = 1 if call.geometry is not None else axes - 1
        if call.inputs.requires_grad:
            tensor, windows, saved = call.inputs, windows_of(call), call.inputs
            padding: Padding | None = self._paddings.get(tensor)
            if padding is not None:
                tensor, windows, saved = padding.undone(tensor, windows)
            add = partial(sums.add, sides[0], channel, windows, self._scratch)
            self._when_back(tensor, add, self._saved.save(saved, read=True))
        return self._follow_output(outputs, partial(sums.add, sides[1], channel, (), self._scratch))

    def _sums_for(self, shape: LayerShape) -> tuple[LayerSums, tuple[int, int]]:
        """Return a layer's sums, and the sides of them that a call's input and output belong to.

        A tied weight may be read the other way round by another layer: what that layer's rows are
        fed with belongs to the columns here.
        """
        sums = self.sums.setdefault(shape.name, LayerSums(shape))
        return sums, (0, 1) if shape.transposed == sums.shape.transposed else (1, 0)

    def _layer_outputs(self, op: Op, call: AffineCall, owner: Owner) -> Tensor:
        """Run a layer so that relevance goes back through it by the rule."""
        at, self._calls = self._calls, self._calls + 1
        if self._operations is None or not call.inputs.requires_grad:
            outputs: Tensor = self._natively(op)
            return outputs
        with torch.no_grad():
            value = op.func(*op.args, **op.kwargs)
        affine = Affine(owner.name, call.weight, call.bias, call.geometry)
        affine = affine.cast(value.dtype)  # another one under autocast
        back = partial(self._by_rule, affine, at)
        outputs = self._modified(op.name, self._rule_name(affine), call.inputs, value, back)
        self._operations.made(outputs, affine, call.inputs, at)
        return outputs

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

    def _rule_name(self, affine: Affine) -> str:
        rule = self._rule
        return (rule.of(affine.name) if isinstance(rule, ByName) else rule).name

    def _fold_norm(self, layer: LayerOutput, affine: Affine, value: Tensor) -> Tensor:
        """Attach a batch norm's result to the input of the layer before it."""
        back = partial(self._by_rule, affine, layer.at)
        name = self._rule_name(affine)
        outputs = self._modified("batch_norm", name, layer.inputs, value, back)
        add = partial(self.sums[affine.name].add, 1, 1, (), self._scratch)
        return self._follow_output(outputs, add)

    def _follow_output(self, outputs: Tensor, add: Add) -> Tensor:
        """Watch a layer's output; return it, or what the model is to go on with in its place."""
        if not outputs.requires_grad:  # its input has no relevance, but it still has
            leaf = outputs.detach().requires_grad_()
            self.leaves.append(leaf)
            outputs = leaf.clone()
        view = bool(outputs._is_view())  # noqa: SLF001 - torch has no public name for it
        self._when_back(outputs, add, self._saved.save(outputs), view=view)
        if self._copy and view:
            return outputs.clone()  # else, once overwritten, its gradient never comes
        return outputs

    def _embedding(self, op: Op) -> Tensor:
        """Look rows up; relevance ends there: it is that of the rows, and of their features."""
        given = op.named("weight indices")
        weight, indices = given["weight"], given["indices"]
        outputs: Tensor = op.func(*op.args, **op.kwargs)
        owner = self._owners.owner(weight)
        if owner is None or outputs.requires_grad:
            return outputs
        rows, features = weight.shape
        shape = LayerShape(owner.name, owner.tied, True, 1, (rows,), features)
        sums, sides = self._sums_for(shape)
        add = partial(sums.add, sides[1], outputs.ndim - 1, (), self._scratch)
        outputs = self._follow_output(outputs, add)
        look_up = partial(sums.add_lookups, sides[0], indices.detach())
        self._when_back(outputs, look_up, self._saved.save(outputs))
        return outputs

    def _when_back(
        self, tensor: Tensor, add: Add, saved: SavedActivation, *, view: bool = False
    ) -> None:
        """Call `add` with what is saved of the tensor and its gradient, once that is known."""
        self._waiting += view
        tensor.register_hook(partial(self._arrive, [saved], add, view))

    def _arrive(
        self,
        cell: list[SavedActivation],
        add: Add,
        view: bool,  # noqa: FBT001 - of a partial
        gradient: Tensor | None,
    ) -> None:
        saved = cell.pop()
        self._waiting -= view
        if gradient is None:  # an operation of the user's says that none goes back
            self._overwritten |= saved.overwritten
        else:
            self._lost.append(saved.is_lost(gradient))
            add(saved.value, gradient)

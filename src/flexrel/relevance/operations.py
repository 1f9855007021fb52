"""How relevance goes through everything between layers, under all rules but gradient x input.

In terms of the modified gradient `G`, with `R(a) = a G(a)`, many operations need nothing: sums,
concatenations, slices, reshapes, padding, average and maximum pooling and (by its first-order
expansion) softmax send relevance on by their plain gradient. What is left is this table:

- elementwise functions pass relevance on, but for what they give without an input, which is a
  constant: `G(x) = G(y) (f(x) - f(0)) / x`; a chain of them on one tensor, such as a GELU written
  out, is one function;
- products share relevance equally between their factors;
- what divides, and the statistics of norms, count as constants: relevance goes to the numerator;
- a batch norm is folded into the layer before it.

Sources: Achtibat et al. 2024 (AttnLRP), section 3.3, and Ali et al. 2022 for norms; Bach et al.
2015 for elementwise functions, sums and pooling; chains and folding by operation: ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.relevance.backward import Back, fixed_scale, norm_back, share, slope_back
from flexrel.relevance.chains import Chains, active
from flexrel.relevance.layer import Affine
from flexrel.tracing import NORMS, Op, is_fixed, operation_name


@dataclass(frozen=True, slots=True, eq=False)
class LayerOutput:
    """That a tensor is a layer's output: of which call, and on what input."""

    affine: Affine
    inputs: Tensor
    at: int  # of how many calls of layers this was, counting from 0
    version: int  # of the output when it was made

    def is_followed_by_norm(self, outputs: Tensor) -> bool:
        """Return whether a norm of axis 1 of the outputs is one of the layer's channels."""
        fresh = self.version == outputs._version  # noqa: SLF001
        return fresh and (self.affine.geometry is not None or outputs.ndim == 2)  # noqa: PLR2004


class OperationRules:
    """What is known of the tensors between layers, and one method for each kind of operation.

    Args:
        native: runs an operation with its plain gradient; and `rule`, what the report calls that,
            if not the gradient.
        modified: runs it with another: `(name, rule, inputs, outputs, back)`.
        folded: attaches a batch norm's result to the input of the layer before it.
    """

    def __init__(
        self,
        native: Callable[..., Any],
        modified: Callable[[str, str, Tensor, Tensor, Back], Tensor],
        folded: Callable[[LayerOutput, Affine, Tensor], Tensor],
    ) -> None:
        self._native, self._modified, self._folded = native, modified, folded
        self._chains = Chains()
        self._made = WeakTensorKeyDictionary()  # a layer's output -> LayerOutput

    def forget(self) -> None:
        """Let go of all tensors."""
        self._chains.forget()
        self._made.clear()

    def made(self, outputs: Tensor, affine: Affine, inputs: Tensor, at: int) -> None:
        """Note that `outputs` are what a layer made of `inputs` in its call number `at`."""
        version = outputs._version  # noqa: SLF001 - torch has no public name for it
        self._made[outputs] = LayerOutput(affine, inputs, at, version)

    def __call__(self, op: Op) -> Any:  # noqa: ANN401 - as the operation, here and below
        """Run an operation so that the backward pass through it follows the table."""
        kind = _KINDS.get(op.name)
        if kind is not None and "out" not in op.kwargs:
            return kind(self, op)
        if op.name.endswith("_") and op.name[:-1] in _KINDS:
            return self._in_place(op)
        return self._native(op)

    def _in_place(self, op: Op) -> Tensor:
        """Run it on a copy and write the result back: the rule needs the value overwritten."""
        target: Tensor = op.args[0]
        plain = op.name[:-1]
        count = len(active(op.given()))
        straight = plain in _COPIES.split()  # in use a dropout changes nothing, in place neither
        straight |= plain in _STRAIGHT.split() and self._chains.root(target) is target
        summed = plain in _SUMS.split() and count > 1
        if straight or not count or (summed and self._chains.common_root(op) is None):
            return self._native(op)  # type: ignore[no-any-return]
        copy = target.clone()
        if (chain := self._chains.of(target))[0] is not target:
            self._chains.note(copy, *chain)
        for value in active(op.given()):
            if value is not target and self._chains.root(value) is target:
                self._chains.note(value, copy, self._chains.of(value)[1])
        kind = _KINDS[plain]
        func = op.func if kind is OperationRules.elementwise else getattr(torch, plain)
        result = kind(self, Op(plain, func, (copy, *op.args[1:]), op.kwargs))
        target.copy_(result)
        if (chain := self._chains.of(result))[0] is not result:
            self._chains.note(target, *chain)
        return target

    def elementwise(self, op: Op) -> Any:  # noqa: ANN401
        """Pass relevance on, but for the share of `f(0)`."""
        inputs = op.args[0] if op.args else op.kwargs["input"]
        if not inputs.requires_grad:
            return self._native(op)
        root = self._chains.root(inputs)
        if root is inputs and op.name in _STRAIGHT.split():  # its slope is that of the gradient
            outputs = self._native(op)
            self._chains.note(outputs, root, 0.0)
            return outputs
        zero = self._at_zero(op)
        plain = inputs.detach().clone() if operation_name(op.func).endswith("_") else inputs
        others = {name: value for name, value in op.kwargs.items() if name != "input"}
        value = _value(replace(op, args=(plain, *op.args[1:]), kwargs=others))
        return self._passed(op.name, root, value, zero)

    def _passed(self, name: str, root: Tensor, value: Tensor, zero: float | None) -> Tensor:
        outputs = self._modified(name, "identity", root, value, partial(slope_back, zero))
        self._chains.note(outputs, root, zero)
        return outputs

    def linear_in_each(self, op: Op) -> Any:  # noqa: ANN401
        """Run a sum or a scaling: its gradient is its rule, but a chain may go on through it."""
        if (root := self._chains.common_root(op)) is not None:
            value = _value(op)
            if value.shape == root.shape:
                return self._passed(op.name, root, value, self._at_zero(op))
        outputs = self._native(op)
        self._extend(op, outputs)
        return outputs

    def product(self, op: Op) -> Any:  # noqa: ANN401
        """Share relevance equally between the factors that have any."""
        if op.name in _POINTWISE.split():
            few = len(active(op.given())) <= 1
            if few or self._chains.common_root(op) is not None:
                return self.linear_in_each(op)
        first = _FIRST_FACTOR.get(op.name, 0)
        count = len(active(replace(op, args=op.args[first:]).given()))

        def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            factors = [share(value, count) for value in args[first:]]
            rest = {name: share(value, count) for name, value in kwargs.items()}
            return op.func(*args[:first], *factors, **rest)

        rule = "equal shares" if count > 1 else "gradient"
        return self._native(replace(op, func=run), rule)

    def quotient(self, op: Op) -> Any:  # noqa: ANN401
        """Send all relevance to the numerator."""
        if self._chains.common_root(op) is not None:
            return self.linear_in_each(op)
        args, kwargs = list(op.args), dict(op.kwargs)
        if op.name in {"__rtruediv__", "__rdiv__"}:
            args[0] = _constant(args[0])
        elif len(args) > 1:
            args[1] = _constant(args[1])
        else:
            kwargs["other"] = _constant(kwargs["other"])
        op = replace(op, args=tuple(args), kwargs=kwargs)
        outputs = self._native(op)
        self._extend(op, outputs)
        return outputs

    def divisor(self, op: Op) -> Any:  # noqa: ANN401
        """Count the result as a constant: it is there to divide by. A mean with it is a mean."""
        if op.name in {"var_mean", "std_mean"}:
            spread, mean = self._native(op)
            return spread.detach(), mean
        with torch.no_grad():
            return op.func(*op.args, **op.kwargs)

    def power(self, op: Op) -> Any:  # noqa: ANN401
        """Treat a power above 0 as an elementwise function, one below as a divisor."""
        exponent = op.args[1] if len(op.args) > 1 else op.kwargs["exponent"]
        varies = isinstance(exponent, Tensor) and exponent.requires_grad
        if varies or not isinstance((*op.args, *op.kwargs.values())[0], Tensor):
            return self._native(op)
        above = bool((torch.as_tensor(exponent) > 0).all())
        return (self.elementwise if above else self.divisor)(op)

    def attention(self, op: Op) -> Any:  # noqa: ANN401
        """Share between probabilities and values, then between queries and keys."""
        given = op.named("query key value attn_mask dropout_p is_causal scale enable_gqa")
        parts = ("query", "key", "value", "attn_mask")
        known = {
            name for name in parts if given.get(name) is not None and given[name].requires_grad
        }
        factors = len(known & {"query", "key"})  # of the scores
        products = len(known & {"value"}) + bool(known - {"value"})
        counts = {"query": products * factors, "key": products * factors}

        def run(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Any:  # noqa: ANN401
            parts = {"query": query, "key": key, "value": value, **rest}
            for name in known:
                parts[name] = share(parts[name], counts.get(name, products))
            return op.func(**parts)

        first = tuple(given.pop(name) for name in ("query", "key", "value"))
        return self._native(Op(op.name, run, first, given), "equal shares")

    def gated(self, op: Op) -> Any:  # noqa: ANN401
        """Read a gated linear unit as the product that it is."""
        given = op.named("input dim")
        values, gate = given["input"].chunk(2, given.get("dim", -1))
        gate = self.elementwise(Op("sigmoid", torch.sigmoid, (gate,), {}))
        return self.product(Op(op.name, torch.mul, (values, gate), {}))

    def norm(self, op: Op) -> Any:  # noqa: ANN401
        """Hold the norm's scale constant; fold one of fixed scale into the layer before it."""
        given = op.norm_arguments()
        inputs = given["input"]
        if not inputs.requires_grad:
            return self._native(op)
        if is_fixed(op.name, given):
            layer: LayerOutput | None = self._made.get(inputs)
            if layer is None or not layer.is_followed_by_norm(inputs):
                return self._native(op)
            with torch.no_grad():
                affine = layer.affine.times(*fixed_scale(given))
            return self._folded(layer, affine, _value(op))
        with torch.no_grad():
            back = norm_back(op.name, given)
        return self._modified(op.name, "constant scale", inputs, _value(op), back)

    def _extend(self, op: Op, outputs: Any) -> None:  # noqa: ANN401
        """Let a chain of elementwise functions go on through a scaling or a shift."""
        if (root := self._chains.goes_on(op, outputs)) is not None:
            self._chains.note(outputs, root, self._at_zero(op))

    def _at_zero(self, op: Op) -> float | None:
        """Return what the operation gives where the root of its arguments is 0."""
        if op.name in _COPIES.split():
            return self._chains.of(active(op.given())[0])[1]
        return self._chains.at_zero(op)


def _constant(value: Any) -> Any:  # noqa: ANN401 - an operation's argument
    """Return it, if a tensor, as one that relevance doesn't go to."""
    return value.detach() if isinstance(value, Tensor) else value


def _value(op: Op) -> Any:  # noqa: ANN401
    """Return the operation's result, attached to no graph."""
    kwargs = {name: _constant(value) for name, value in op.kwargs.items()}
    with torch.no_grad():
        return op.func(*map(_constant, op.args), **kwargs)


_STRAIGHT = "relu leaky_relu prelu rrelu abs"  # on either side of 0
_CURVED = (
    "relu6 hardtanh clamp clamp_min clamp_max clip threshold gelu silu mish hardswish hardsigmoid "
    "sigmoid tanh elu selu celu softplus softsign softshrink hardshrink tanhshrink logsigmoid "
    "log_sigmoid erf exp exp2 __rpow__ expm1 log log1p sqrt square sin cos atan"
)
_SUMS = "add sub neg"
_COPIES = "dropout to float clone"
_SCALINGS = f"__add__ __radd__ __sub__ __rsub__ rsub __neg__ {_COPIES}"
_POINTWISE = "mul multiply __mul__ __rmul__"
_PRODUCTS = (
    "matmul __matmul__ __rmatmul__ mm bmm mv dot inner outer ger einsum bilinear tensordot kron "
    "baddbmm addbmm addcmul linear conv1d conv2d conv3d addmm"
)
_FIRST_FACTOR = {"baddbmm": 1, "addbmm": 1, "addcmul": 1, "addmm": 1}
_QUOTIENTS = "div divide true_divide __truediv__ __div__ __rtruediv__ __rdiv__"
_DIVISORS = (
    "rsqrt reciprocal norm linalg_norm linalg_vector_norm frobenius_norm var std var_mean std_mean"
)

_Kind = Callable[[OperationRules, Op], Any]


_GROUPS: list[tuple[str, _Kind]] = [
    (f"{_STRAIGHT} {_CURVED}", OperationRules.elementwise),
    (f"{_SUMS} {_SCALINGS}", OperationRules.linear_in_each),
    (f"{_POINTWISE} {_PRODUCTS}", OperationRules.product),
    (_QUOTIENTS, OperationRules.quotient),
    (_DIVISORS, OperationRules.divisor),
    ("pow __pow__", OperationRules.power),
    ("scaled_dot_product_attention", OperationRules.attention),
    ("glu", OperationRules.gated),
    (" ".join(NORMS), OperationRules.norm),
]
_KINDS = {name: kind for names, kind in _GROUPS for name in names.split()}

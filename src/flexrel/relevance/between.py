"""How relevance goes through everything between layers, under all rules but gradient x input.

In terms of the modified gradient `G`, with `R(a) = a G(a)`, many operations need nothing: sums,
concatenations, members, reshapes, padding, average and maximum pooling and (by its first-order
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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.relevance.arguments import active, constant, detached, is_active, share
from flexrel.relevance.backward import Back, shared
from flexrel.relevance.chains import Chains, slope_back
from flexrel.relevance.layer import Affine
from flexrel.relevance.norms import fixed_scale, norm_back
from flexrel.tracing import NORMS, Function, bound, is_fixed, name_of


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """That a tensor is a layer's output: of which call, and on what input."""

    affine: Affine
    inputs: Tensor
    at: int  # of how many calls of layers this was, counting from 0
    version: int  # of the output when it was made

    def is_followed_by_norm(self, outputs: Tensor) -> bool:
        """Return whether a norm of axis 1 of the outputs is one of the layer's channels."""
        fresh = self.version == outputs._version  # noqa: SLF001
        return fresh and (self.affine.geometry is not None or outputs.ndim == 2)  # noqa: PLR2004


class Between:
    """What is known of the tensors between layers, and one method for each kind of operation.

    Args:
        native: runs an operation with its plain gradient: `(name, func, args, kwargs)`, and `rule`,
            what the report calls that, if not the gradient.
        modified: runs it with another: `(name, rule, inputs, outputs, back)`.
        folded: attaches a batch norm's result to the input of the layer before it.
    """

    def __init__(
        self,
        native: Callable[..., Any],
        modified: Callable[[str, str, Tensor, Tensor, Back], Tensor],
        folded: Callable[[Made, Affine, Tensor], Tensor],
    ) -> None:
        self._native, self._modified, self._folded = native, modified, folded
        self._chains = Chains()
        self._made = WeakTensorKeyDictionary()  # a layer's output -> Made

    def forget(self) -> None:
        """Let go of all tensors."""
        self._chains.forget()
        self._made.clear()

    def made(self, outputs: Tensor, affine: Affine, inputs: Tensor, at: int) -> None:
        """Note that `outputs` are what a layer made of `inputs` in its call number `at`."""
        version = outputs._version  # noqa: SLF001 - torch has no public name for it
        self._made[outputs] = Made(affine, inputs, at, version)

    def __call__(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401 - as the operation
        """Run an operation so that the backward pass through it follows the table."""
        kind = KINDS.get(name)
        if kind is not None and "out" not in kwargs:
            return kind(self, name, func, args, kwargs)
        if name.endswith("_") and KINDS.get(name[:-1]) is not None:
            return self._in_place(name, func, args, kwargs)
        return self._native(name, func, args, kwargs)

    def _in_place(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Run it on a copy and write the result back: the rule needs the value overwritten."""
        target: Tensor = args[0]
        plain = name[:-1]
        count = len(active(args, kwargs))
        straight = plain in _COPIES.split()  # in use a dropout changes nothing, in place neither
        straight |= plain in _STRAIGHT.split() and self._chains.root(target) is target
        summed = plain in _SUMS.split() and count > 1
        if straight or not count or (summed and self._chains.common_root(args, kwargs) is None):
            return self._native(name, func, args, kwargs)  # type: ignore[no-any-return]
        copy = target.clone()
        if (chain := self._chains.of(target))[0] is not target:
            self._chains.note(copy, *chain)
        for value in (*args[1:], *kwargs.values()):
            if is_active(value) and value is not target and self._chains.root(value) is target:
                self._chains.note(value, copy, self._chains.of(value)[1])
        out_of_place = func if KINDS[plain] is Between.elementwise else getattr(torch, plain)
        result = KINDS[plain](self, plain, out_of_place, (copy, *args[1:]), kwargs)
        target.copy_(result)
        if (chain := self._chains.of(result))[0] is not result:
            self._chains.note(target, *chain)
        return target

    def elementwise(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Pass relevance on, but for the share of `f(0)`."""
        inputs = args[0] if args else kwargs["input"]
        if not inputs.requires_grad:
            return self._native(name, func, args, kwargs)
        root = self._chains.root(inputs)
        if root is inputs and name in _STRAIGHT.split():  # its slope is that of the gradient
            outputs = self._native(name, func, args, kwargs)
            self._chains.note(outputs, root, 0.0)
            return outputs
        zero = self._at_zero(name, func, args, kwargs)
        plain = inputs.detach().clone() if name_of(func).endswith("_") else inputs.detach()
        with torch.no_grad():
            value = func(plain, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        return self._passed(name, root, value, zero)

    def _passed(self, name: str, root: Tensor, value: Tensor, zero: float | None) -> Tensor:
        outputs = self._modified(name, "identity", root, value, partial(slope_back, zero))
        self._chains.note(outputs, root, zero)
        return outputs

    def linear_in_each(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Run a sum or a scaling: its gradient is its rule, but a chain may go on through it."""
        if (root := self._chains.common_root(args, kwargs)) is not None:
            with torch.no_grad():
                value = func(*detached(args), **detached(kwargs))
            if value.shape == root.shape:
                zero = self._at_zero(name, func, args, kwargs)
                return self._passed(name, root, value, zero)
        outputs = self._native(name, func, args, kwargs)
        self._extend(name, func, outputs, args, kwargs)
        return outputs

    def product(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Share relevance equally between the factors that have any."""
        if name in _POINTWISE.split():
            count = len(active(args, kwargs))
            root = self._chains.common_root(args, kwargs)
            if count <= 1 or root is not None:
                return self.linear_in_each(name, func, args, kwargs)
        first = _FIRST_FACTOR.get(name, 0)
        count = len(active(args[first:], kwargs))

        def run(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            factors = [share(value, count) for value in given[first:]]
            rest = {key: share(value, count) for key, value in named.items()}
            return func(*given[:first], *factors, **rest)

        rule = "equal shares" if count > 1 else "gradient"
        return self._native(name, run, args, kwargs, rule)

    def quotient(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Send all relevance to the numerator."""
        if self._chains.common_root(args, kwargs) is not None:
            return self.linear_in_each(name, func, args, kwargs)
        given, named = list(args), dict(kwargs)
        if name in {"__rtruediv__", "__rdiv__"}:
            given[0] = constant(given[0])
        elif len(given) > 1:
            given[1] = constant(given[1])
        else:
            named["other"] = constant(named["other"])
        outputs = self._native(name, func, tuple(given), named)
        self._extend(name, func, outputs, tuple(given), named)
        return outputs

    def divisor(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Count the result as a constant: it is there to divide by. A mean with it is a mean."""
        if name in {"var_mean", "std_mean"}:
            spread, mean = self._native(name, func, args, kwargs)
            return spread.detach(), mean
        with torch.no_grad():
            return func(*args, **kwargs)

    def power(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Treat a power above 0 as an elementwise function, one below as a divisor."""
        exponent = args[1] if len(args) > 1 else kwargs["exponent"]
        if is_active(exponent) or not isinstance((*args, *kwargs.values())[0], Tensor):
            return self._native(name, func, args, kwargs)
        above = bool((torch.as_tensor(exponent) > 0).all())
        return (self.elementwise if above else self.divisor)(name, func, args, kwargs)

    def attention(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Share between probabilities and values, then between queries and keys."""
        given = dict(zip(_ATTENTION.split(), args, strict=False)) | dict(kwargs)
        known = {key for key in ("query", "key", "value", "attn_mask") if is_active(given.get(key))}
        factors = len(known & {"query", "key"})  # of the scores
        products = len(known & {"value"}) + bool(known - {"value"})
        counts = {"query": products * factors, "key": products * factors}

        def run(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            parts = dict(zip(("query", "key", "value"), given, strict=True)) | named
            for key in known:
                parts[key] = shared(parts[key], counts.get(key, products))
            return func(**parts)

        rest = {key: value for key, value in given.items() if key not in _ATTENTION.split()[:3]}
        first = (given["query"], given["key"], given["value"])
        return self._native(name, run, first, rest, "equal shares")

    def gated(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Read a gated linear unit as the product that it is."""
        del func
        inputs = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        values, gate = inputs.chunk(2, axis)
        gate = self.elementwise("sigmoid", torch.sigmoid, (gate,), {})
        return self.product(name, torch.mul, (values, gate), {})

    def norm(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """Hold the norm's scale constant; fold one of fixed scale into the layer before it."""
        given = bound(name, args, kwargs)
        inputs = given["input"]
        if not inputs.requires_grad:
            return self._native(name, func, args, kwargs)
        if is_fixed(name, given):
            made: Made | None = self._made.get(inputs)
            if made is None or not made.is_followed_by_norm(inputs):
                return self._native(name, func, args, kwargs)
            with torch.no_grad():
                value = func(*detached(args), **detached(kwargs))
                affine = made.affine.times(*fixed_scale(given))
            return self._folded(made, affine, value)
        with torch.no_grad():
            value = func(*detached(args), **detached(kwargs))
            back = norm_back(name, given)
        return self._modified(name, "constant scale", inputs, value, back)

    def _extend(
        self,
        name: str,
        func: Function,
        outputs: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Let a chain of elementwise functions go on through a scaling or a shift."""
        if (root := self._chains.goes_on(outputs, args, kwargs)) is not None:
            self._chains.note(outputs, root, self._at_zero(name, func, args, kwargs))

    def _at_zero(
        self, name: str, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> float | None:
        """Return what the operation gives where the root of its arguments is 0."""
        if name in _COPIES.split():
            return self._chains.of(active(args, kwargs)[0])[1]
        return self._chains.at_zero(func, args, kwargs)


_ATTENTION = "query key value attn_mask dropout_p is_causal scale enable_gqa"
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

Kind = Callable[[Between, str, Function, tuple[Any, ...], Mapping[str, Any]], Any]


def _table() -> dict[str, Kind]:
    groups: list[tuple[str, Kind]] = [
        (f"{_STRAIGHT} {_CURVED}", Between.elementwise),
        (f"{_SUMS} {_SCALINGS}", Between.linear_in_each),
        (f"{_POINTWISE} {_PRODUCTS}", Between.product),
        (_QUOTIENTS, Between.quotient),
        (_DIVISORS, Between.divisor),
        ("pow __pow__", Between.power),
        ("scaled_dot_product_attention", Between.attention),
        ("glu", Between.gated),
        (" ".join(NORMS), Between.norm),
    ]
    return {name: kind for names, kind in groups for name in names.split()}


KINDS = _table()

"""Ways back for relevance other than an operation's plain gradient.

One autograd function serves all operations whose backward pass is a rule; what is here too are the
ways back themselves, as functions of tensors: equal shares, through elementwise functions and
through norms.

A norm subtracts a mean and multiplies by a scale, both made of its input or, of a batch norm in
use, fixed. Held constant, the scale makes it a linear map, and its way back is the transpose (Ali
et al. 2022, section 4; Achtibat et al. 2024, section 3.3.3).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Back = Callable[[Tensor, Tensor, Tensor], Tensor]  # G(outputs), inputs, outputs -> G(inputs)


def modified(inputs: Tensor, outputs: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `outputs`, through which the backward pass goes to `inputs` by `back`.

    Args:
        inputs: what the modified gradient goes to.
        outputs: a value already computed, attached to no graph; it is the result itself.
        back: from the modified gradient of the outputs to that of the inputs. It is freed, with
            all that it holds on to, once it was called.
    """
    found: Tensor = _Modified.apply(inputs, [outputs], back)  # type: ignore[no-untyped-call]
    return found


class _Modified(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        _: Tensor,
        outputs: list[Tensor],
        back: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.back = back
        found = outputs[0]  # in a list: a result that is an argument could not be overwritten
        if found._is_view():  # noqa: SLF001 - nor could a view; this shares its memory, untracked
            found = torch.ops.aten._unsafe_view.default(found, found.shape)  # noqa: SLF001
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        back, ctx.back = ctx.back, None
        return back(gradient), None, None


def share(value: Any, count: int) -> Any:  # noqa: ANN401 - an operation's argument
    """Return it as one of `count` operands that get equal parts of the relevance.

    So it is where an operation is linear in each of them (Achtibat et al. 2024, section 3.3.2).

    Args:
        value: a tensor, of which relevance comes to those made of the model's inputs; a list or
            tuple with such; or anything else, which is returned as it is.
        count: of operands; the modified gradient of each is divided by it.
    """
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        return type(value)(share(v, count) for v in value)
    if count == 1 or not isinstance(value, Tensor) or not value.requires_grad:
        return value
    return modified(value, value.detach(), lambda gradient: gradient / count)


def slope_back(zero: float | None, gradient: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return `G(y) (y - f(0)) / x`, of an elementwise `y = f(x)`; 0 where `x` is (almost) 0."""
    tiny = 1e-6 if inputs.dtype == torch.float16 else 1e-12
    slope = (outputs - zero if zero else outputs) / inputs
    return slope.masked_fill_(inputs.abs() < tiny, 0).mul_(gradient)


def fixed_scale(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what a norm of fixed scale multiplies each channel by, and what it adds then."""
    scale = (given["running_var"] + given["eps"]).rsqrt()
    if given["weight"] is not None:
        scale = scale * given["weight"]
    shift = -given["running_mean"] * scale
    if given["bias"] is not None:
        shift = shift + given["bias"]
    dtype = given["input"].dtype
    return scale.to(dtype), shift.to(dtype)


def norm_back(name: str, given: Mapping[str, Any]) -> Back:
    """Return the way back through a norm whose scale is made of its input."""
    inputs, weight, eps = given["input"].detach(), given["weight"], given["eps"]
    if name == "rms_norm":
        axes = _last(given["normalized_shape"])
        floor = torch.finfo(inputs.dtype).eps if eps is None else eps
        scale = (inputs.square().mean(axes, keepdim=True) + floor).rsqrt_()
        return lambda gradient, *_: _times(gradient, weight) * scale
    if name == "layer_norm":
        axes = _last(given["normalized_shape"])
        scale = _scale(inputs, axes, 1e-5 if eps is None else eps)
        return lambda gradient, *_: _centred(_times(gradient, weight), axes).mul_(scale)
    if name == "batch_norm":  # of the batch's own mean and scale
        axes = (0, *range(2, inputs.ndim))
        groups = [len(inputs), inputs.shape[1]]
    else:
        axes = (2,)
        groups = [len(inputs), given["num_groups"] if name == "group_norm" else inputs.shape[1]]
    grouped = inputs if name == "batch_norm" else inputs.reshape(*groups, -1)
    scale = _scale(grouped, axes, 1e-5 if eps is None else eps)
    channels = None if weight is None else weight.view(1, -1, *[1] * (inputs.ndim - 2))

    def back(gradient: Tensor, *_: Tensor) -> Tensor:
        sent = _times(gradient, channels).reshape(grouped.shape)
        return _centred(sent, axes).mul_(scale).view(inputs.shape)

    return back


def _last(shape: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(-len(shape), 0))


def _scale(inputs: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    return (inputs.var(axes, correction=0, keepdim=True) + eps).rsqrt_()


def _times(gradient: Tensor, weight: Tensor | None) -> Tensor:
    return gradient if weight is None else gradient * weight


def _centred(gradient: Tensor, axes: tuple[int, ...]) -> Tensor:
    return gradient - gradient.mean(axes, keepdim=True)

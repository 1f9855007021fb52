"""How relevance goes back through norms: their scale counts as a constant.

A norm subtracts a mean and multiplies by a scale, both made of its input or, of a batch norm in
use, fixed. Held constant, the scale makes it a linear map, of which this is the transpose
(Ali et al. 2022, section 4; Achtibat et al. 2024, section 3.3.3).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flexrel.relevance.backward import Back


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

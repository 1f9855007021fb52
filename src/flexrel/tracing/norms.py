"""Norms as operations: their arguments by name, and whether their scale is fixed."""

from collections.abc import Mapping
from typing import Any

NORMS: Mapping[str, str] = {  # name -> its arguments
    "batch_norm": "input weight bias running_mean running_var training momentum eps",
    "instance_norm": "input weight bias running_mean running_var use_input_stats momentum eps",
    "group_norm": "input num_groups weight bias eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
}


def bound(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a norm by name; those not given are None."""
    names = NORMS[name].split()
    return dict.fromkeys(names) | dict(zip(names, args, strict=False)) | dict(kwargs)


def is_fixed(name: str, given: Mapping[str, Any]) -> bool:
    """Return whether mean and scale are fixed numbers, not made of the input."""
    measures = {"batch_norm": "training", "instance_norm": "use_input_stats"}
    return name in measures and not given[measures[name]]

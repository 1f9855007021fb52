"""Other people's programs that ours are compared with, where they are installed.

They come with the extra "oracles"; a test that needs one that is missing is skipped, and says so.
"""

import importlib
import importlib.util
import warnings

import pytest
import torch

_declared = []  # a library's operators are gone once it is


def needs(name):
    """Import a module of an oracle; skip the test that asks for it if it is not installed."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it comes with the extra 'oracles'")
    _declare_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import; not ours to mend
        return importlib.import_module(name)


def _declare_operators():
    """Declare what torchvision's wheel compiles for CUDA only, where it doesn't load without."""
    if _declared or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)

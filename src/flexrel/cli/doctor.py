"""What is installed, whether it loads, what can compute; and what to do about what can't.

It has to work where torch does not, so nothing here is imported that needs torch.
"""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from flexrel.cli.factories import conflict, installing, versions

State = Literal["ok", "missing", "broken"]
# (what pip calls it, what is imported, what for): what FlexRel can't do without, and what it can.
_NEEDED: Final = (
    ("flexrel", "flexrel", "all"),
    ("flexrel-edge", "flexrel_edge", "all"),
    ("torch", "torch", "all"),
    ("numpy", "numpy", "all"),
    ("safetensors", "safetensors", "all"),
    ("jaxtyping", "jaxtyping", "all"),
    ("greenlet", "greenlet", "repair"),
    ("jinja2", "jinja2", "the report"),
)
_OPTIONAL: Final = (
    ("pcodec", "pcodec", "packed files, but on devices without a wheel of it"),
    ("onnx", "onnx", "--export onnx and graph"),
    ("onnxscript", "onnxscript", "--export onnx and graph"),
    ("onnxruntime", "onnxruntime", "flexrel-edge run"),
    ("optuna", "optuna", "flexrel sweep"),
    ("cryptography", "cryptography", "signatures"),
    ("scikit-learn", "sklearn", "flexrel demo"),
    ("pillow", "PIL.Image", "folders of images"),
    ("torchvision", "torchvision", "torchvision:NAME"),
    ("timm", "timm", "timm:NAME"),
    ("transformers", "transformers", "hf:FOLDER"),
)
_OLDEST_TORCH: Final = (2, 9)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing.

    Attributes:
        name: of it.
        state: "ok", "missing" or "broken".
        told: its version, or what else there is to know.
        advice: what to do, or "".
        needed: whether FlexRel can't do without it.
    """

    name: str
    state: State
    told: str
    advice: str = ""
    needed: bool = False


def findings() -> Iterator[Finding]:
    """Yield all that is found out, one after the other: loading takes seconds."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name, module, purpose in _NEEDED:
        yield package(name, module, purpose, needed=True)
    yield same_version()
    for name, module, purpose in _OPTIONAL:
        yield package(name, module, purpose)
    yield from runtimes()
    yield from accelerators()


def package(name: str, module: str, purpose: str, *, needed: bool = False) -> Finding:
    """Return whether a package is there, and can be loaded."""
    found = versions(name)[name]
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever a package raises
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        if absent:
            return Finding(name, "missing", f"for {purpose}", installing(name), needed)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(name, "broken", f"{found or ''} {said}".lstrip(), conflict(name), needed)
    told = found or str(getattr(loaded, "__version__", "version not known"))
    if name == "torch" and _numbers(told) < _OLDEST_TORCH:
        return Finding(name, "broken", f"{told} is too old", "pip install 'torch>=2.9'", needed)
    return Finding(name, "ok", told, needed=needed)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())


def same_version() -> Finding:
    """Return whether the two distributions are of one version: they share a file format."""
    found = versions("flexrel", "flexrel-edge")
    told = " and ".join(f"{name} {one or 'not installed'}" for name, one in found.items())
    if len(set(found.values())) == 1:
        return Finding("flexrel beside flexrel-edge", "ok", told, needed=True)
    advice = "install both from one checkout: pip install ./edge ."
    return Finding("flexrel beside flexrel-edge", "broken", told, advice, needed=True)


def runtimes() -> Iterator[Finding]:
    """Yield what onnxruntime can run on, if it is there."""
    runtime: Any = sys.modules.get("onnxruntime")
    if runtime is not None:
        yield Finding("onnxruntime runs on", "ok", ", ".join(runtime.get_available_providers()))


def accelerators() -> Iterator[Finding]:
    """Yield what torch computes on, and whether that is all that there is."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return
    threads = torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS")
    limited = f", as OMP_NUM_THREADS says of {os.cpu_count()} cores" if asked else ""
    yield Finding("threads of torch", "ok", f"{threads}{limited}")
    if torch.cuda.is_available():
        for at in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(at)
            yield Finding(f"cuda:{at}", "ok", f"{known.name}, {known.total_memory / 2**30:.0f} GiB")
        return
    if shutil.which("nvidia-smi"):
        built = torch.version.cuda
        reason = (
            f"built for CUDA {built}, but no GPU can be used" if built else "built without CUDA"
        )
        advice = (
            "nvidia-smi says whether the driver works and is new enough"
            if built
            else "install a build of torch for CUDA, as https://pytorch.org says, to use the GPU"
        )
        yield Finding("accelerator", "broken", f"torch {torch.__version__} is {reason}", advice)
        return
    yield Finding("accelerator", "ok", "none; computed on the CPU")

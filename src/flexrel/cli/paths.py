"""Files and folders that arguments name, looked at before torch is loaded."""

import os
import zipfile
from pathlib import Path
from typing import Final

import typer

ARRAYS: Final = (".npz", ".npy", ".pt", ".pth")
TABLES: Final = (".csv", ".tsv")
TEXTS: Final = (*TABLES, ".jsonl", ".txt")
DATA_FORMS: Final = (
    "a folder of images, an .npz or .pt with x and y, a .csv of numbers or texts, a .jsonl or "
    ".txt of texts, file.py:factory, package.module:factory or demo:digits"
)
_FILES: Final = (".py", ".pt2", *ARRAYS, *TEXTS)
_WEIGHTS: Final = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".flexrel")
WRITTEN: Final = ("model.flexrel", "plan.json", "result.json", "report.html")
EXPORTED: Final = ("model.onnx", "model.pt2")
SCRIPTED: Final = (
    "TorchScript, a program that can't be cut; where it was made, save what it holds, "
    'safetensors.torch.save_file(torch.jit.load(...).state_dict(), "weights.safetensors"), and '
    "give that as --weights"
)


def existing(spec: str | None) -> str | None:
    """Return MODEL or DATA as it was given, unless it names a file or folder that is not there.

    Raises:
        typer.BadParameter: it does.
    """
    place = (spec or "").partition("?")[0].partition(":")[0]
    named = Path(place).suffix in _FILES or os.sep in place
    if named and not Path(place).exists():
        raise typer.BadParameter(f"{place}: no such file or folder")
    return spec


def data_there(spec: str | None) -> str | None:
    """Return DATA as it was given, unless it names what is not there, or no data.

    Raises:
        typer.BadParameter: it does.
    """
    existing(spec)
    place = (spec or "").partition("?")[0]
    if (spec or "").startswith("hf:"):
        raise typer.BadParameter(
            f"{spec} is no data; a network of Hugging Face takes a .csv, .jsonl or .txt of texts, "
            "by its own tokenizer, or file.py:factory"
        )
    if Path(place).is_file() and Path(place).suffix not in (*ARRAYS, *TEXTS, ".py"):
        kind = Path(place).suffix or "file"
        raise typer.BadParameter(f"{spec}: a {kind} is no data that can be read; {DATA_FORMS}")
    return spec


def model_there(spec: str) -> str:
    """Return MODEL as it was given, unless it is a file that holds no architecture.

    Raises:
        typer.BadParameter: it is; says what to give.
    """
    path = Path(spec)
    if is_torchscript(path):
        raise typer.BadParameter(f"{spec} is {SCRIPTED}, and the architecture as MODEL")
    if path.suffix in _WEIGHTS:
        raise typer.BadParameter(
            f"{spec} is a file of weights and no architecture; give that as MODEL, as "
            f"file.py:factory or torchvision:resnet18, and this as --weights {spec}"
        )
    if path.is_dir():
        known = (path / "config.json").is_file()
        raise typer.BadParameter(
            f"{spec} is a folder; write hf:{spec}"
            if known
            else f"{spec} is a folder, and none of transformers; give the network as "
            "file.py:factory, and its weights as --weights FILE"
        )
    if path.suffix in (".npz", ".npy", *TEXTS):
        raise typer.BadParameter(
            f"{spec} holds data, which --calibration and --evaluation take; give a network as "
            "MODEL, as file.py:factory"
        )
    if path.suffix == ".onnx":
        raise typer.BadParameter(
            f"{spec} is an ONNX graph; give the network of torch that it is made of"
        )
    existing(spec)
    return spec


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Find out before the work, not after it, that results can't be written, or replace others.

    Raises:
        typer.BadParameter: they can't be, or would.
    """
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file; name a folder for the results")
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise typer.BadParameter(f"{out}: nothing can be written in {there}")
    if found := [name for name in (*WRITTEN, *EXPORTED) if (out / name).exists()]:
        if overwrite:
            return
        raise typer.BadParameter(
            f"{out}/ has results already: {', '.join(found)}; name another folder with --out, or "
            "replace them with --overwrite"
        )


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a module that `torch.jit.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())

"""DATA as they are named on the command line. Files are never unpickled."""

from collections.abc import Iterable
from pathlib import Path

from torch.utils.data import Dataset

from flexrel.cli import demo
from flexrel.cli.arrays import array_data, arrays_of
from flexrel.cli.factories import function_by, made_by
from flexrel.cli.images import Preparation, image_folder
from flexrel.cli.paths import ARRAYS, DATA_FORMS, TABLES, TEXTS
from flexrel.cli.tables import table_data
from flexrel.cli.texts import Tokenizer, text_data
from flexrel.core.batches import RawBatch
from flexrel.core.class_names import ClassNames
from flexrel.core.evaluate import Evaluate, evaluate_of
from flexrel.core.forms import batches_of
from flexrel.errors import UsageError

_BATCH = 64  # samples, where the data do not come in batches


def read_data(
    spec: str,
    role: str,
    preparation: Preparation | None = None,
    names: ClassNames = (),
    tokenizer: Tokenizer | None = None,
) -> Iterable[RawBatch]:
    """Return the batches that a DATA argument names; they can be gone through again and again.

    Args:
        spec: a folder of images, a file of arrays (`array_data`), of texts (`text_data`) or, where
            no tokenizer reads it, of numbers (`table_data`), `file.py:factory`,
            `package.module:factory`, or `demo:digits`. A factory may return what
            `flexrel.prune` takes, one tensor of all inputs, or a pair of inputs and labels.
        role: "calibration", or "evaluation", which needs labels: also which of the demo's data.
        preparation: how images become inputs, if that is known.
        names: of the network's classes, if they are known, as sub-folders of images may be called.
        tokenizer: that makes texts the network's arguments, if it has one.

    Raises:
        UsageError: there is no such thing, or it holds no batches.
    """
    if spec == "demo:digits":
        data = demo.digits()
        return data.calibration if role == "calibration" else data.evaluation
    place = Path(spec.partition("?")[0])
    if place.is_dir():
        return image_folder(place, preparation, _BATCH, names)
    if place.suffix in TABLES and tokenizer is None:
        return table_data(spec, _BATCH, names, labelled_only=role == "evaluation")
    if place.suffix in TEXTS:
        return text_data(spec, tokenizer, _BATCH, names)
    return array_data(spec, _BATCH, names) if place.suffix in ARRAYS else _made(spec)


def _made(spec: str) -> Iterable[RawBatch]:
    """Return the batches that code of the user's makes."""
    path = Path(spec)
    if path.is_file() and path.suffix != ".py":
        raise UsageError(
            f"{spec}: a {path.suffix or 'file'} is no data that can be read; {DATA_FORMS}"
        )
    batches = made_by(spec, "data", DATA_FORMS)
    if isinstance(batches, Dataset):
        return batches_of(batches)
    if (arrays := arrays_of(batches, spec, _BATCH)) is not None:
        return arrays
    if not isinstance(batches, Iterable):
        raise UsageError(f"{spec} returned a {type(batches).__name__}, not an iterable of batches")
    return batches if iter(batches) is not batches else list(batches)


def read_evaluate(
    spec: str | None,
    preparation: Preparation | None = None,
    names: ClassNames = (),
    outputs: str = "auto",
    tokenizer: Tokenizer | None = None,
) -> Evaluate | None:
    """Return what tells how a network does: measured on data, or a function `model -> numbers`.

    Args:
        spec: a DATA argument; or a function in a file or module that needs an argument, the model;
            None for nothing.
        preparation: as in `read_data`.
        names: likewise.
        outputs: what the network's outputs are: of "values" errors are measured.
        tokenizer: as in `read_data`.

    Raises:
        UsageError: there is no such thing, or it holds no batches.
    """
    if spec is None:
        return None
    path = Path(spec.partition("?")[0])
    if not (spec == "demo:digits" or path.exists() or path.suffix in (*ARRAYS, *TEXTS)):
        function = function_by(spec, "data", DATA_FORMS)
        if function is not None:
            return function
    data = read_data(spec, "evaluation", preparation, names, tokenizer)
    return evaluate_of(data, outputs)


def first_batch(batches: Iterable[RawBatch]) -> RawBatch:
    """Return the first of the batches; UsageError if there is none."""
    for batch in batches:
        return batch
    raise UsageError("the data hold no batch; one is needed as an example")

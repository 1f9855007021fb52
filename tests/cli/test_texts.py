"""Texts in files as data, by a network's tokenizer."""

import pytest
import torch
import typer
from torch import nn

import flexrel
from flexrel.cli.paths import data_there, model_there
from flexrel.cli.sources import read_data, read_evaluate
from flexrel.cli.texts import text_data
from flexrel.errors import UsageError

ROWS = [("a film", "pos"), ("dull", "neg"), ("a nice film, this", "pos")]


def tokenizer(texts, pairs):
    """Return the lengths of words, padded with 0, the second text after a -1."""
    rows = [list(map(len, text.split())) for text in texts]
    for row, pair in zip(rows, pairs or (), strict=False):
        row += [-1, *map(len, pair.split())]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def written(path, name):
    lines = {
        "d.csv": ["text,label", *(f'"{text}",{label}' for text, label in ROWS)],
        "d.tsv": ["n\treview\tsentiment", *(f"0\t{text}\t{label}" for text, label in ROWS)],
        "d.jsonl": [f'{{"sentence": "{text}", "label": "{label}"}}' for text, label in ROWS],
    }
    (path / name).write_text("\n".join(lines[name]))
    return str(path / name)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl"])
def test_texts_and_labels_are_found_as_people_name_them(tmp_path, name):
    data = text_data(written(tmp_path, name), tokenizer, 2, ("neg", "pos"))

    first, second = data
    assert len(data) == 2
    assert first["input_ids"].tolist() == [[1, 4], [4, 0]]
    assert second["input_ids"].tolist() == [[1, 4, 5, 4]]
    assert first["labels"].tolist() + second["labels"].tolist() == [1, 0, 1]
    assert data.classes == ("neg", "pos")


def test_lines_alone_have_no_labels(tmp_path):
    (tmp_path / "d.txt").write_text("a film\n\ndull\n")

    (batch,) = read_data(f"{tmp_path}/d.txt", "calibration", tokenizer=tokenizer)

    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[1, 4], [4, 0]]


@pytest.mark.parametrize(("labels", "expected"), [("3,1,0", [3, 1, 0]), ("0.5,2,1", [0.5, 2, 1])])
def test_two_texts_a_sample_other_names_and_numbers_for_labels(tmp_path, labels, expected):
    rows = zip(("a b", "c", "d"), ("e", "f", "g h"), labels.split(","), strict=True)
    lines = ["one,two,stars", *map(",".join, rows)]
    (tmp_path / "d.csv").write_text("\n".join(lines))

    (batch,) = text_data(f"{tmp_path}/d.csv?text=one&pair=two&label=stars", tokenizer, 8)

    assert batch["input_ids"].tolist() == [[1, 1, -1, 1], [1, -1, 1, 0], [1, -1, 1, 1]]
    assert batch["labels"].tolist() == expected


def test_a_network_is_judged_by_texts(tmp_path):
    class Long(nn.Module):
        """Says 1 of texts of three words or more."""

        def forward(self, input_ids, attention_mask):
            long = (attention_mask.sum(1) > 2).float()
            return torch.stack((1 - long, long), 1)

    evaluate = read_evaluate(written(tmp_path, "d.csv"), names=("neg", "pos"), tokenizer=tokenizer)

    assert evaluate(Long()) == pytest.approx(2 / 3)  # "a film" is short


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.csv", "a,b\n1,2\n", r"has no 'text'; it has 'a', 'b'; write .*\?text=NAME&label=NAME"),
        ("d.csv", "text,label\nx,odd\n", "'odd' are no names.*: neg, pos; give --class-names"),
        ("d.csv", "text,label\n", "has no text"),
        ("d.jsonl", '{"text": "x"}\n{"other": 1}\n', "a line has no 'text', as the first has"),
        ("d.jsonl", "{", "no texts that can be read"),
        ("d.csv?text=body", "text\nx\n", "has no 'body'; it has 'text'"),
    ],
)
def test_files_without_texts_are_refused_with_what_they_have(tmp_path, name, text, says):
    (tmp_path / name.partition("?")[0]).write_text(text)

    with pytest.raises(UsageError, match=says):
        text_data(f"{tmp_path}/{name}", tokenizer, 8, ("neg", "pos"))


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl"])
def test_texts_for_a_network_without_a_tokenizer_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"texts.* need the network's tokenizer, as hf:FOLDER"):
        read_data(written(tmp_path, name), "calibration")


def test_what_is_no_data_or_no_model_is_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "d.xlsx").touch()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").touch()

    with pytest.raises(typer.BadParameter, match=r"a \.xlsx is no data.*\.npz or \.pt"):
        data_there(f"{tmp_path}/d.xlsx")
    with pytest.raises(typer.BadParameter, match=r"no data; .*takes a \.csv"):
        data_there("hf:sentiment")
    with pytest.raises(typer.BadParameter, match=f"write hf:{tmp_path}/hub"):
        model_there(f"{tmp_path}/hub")
    with pytest.raises(typer.BadParameter, match="none of transformers"):
        model_there(str(tmp_path))


def test_a_batch_of_texts_says_what_makes_tokens(tmp_path):
    with pytest.raises(flexrel.UsageError, match=r"but str, str; .*tokenizer\(texts"):
        flexrel.calibrate(nn.Linear(2, 2), [(["a", "b"], ["pos", "neg"])])

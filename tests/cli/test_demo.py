"""The demo keeps its promise."""

import json

import pytest
import torch

import flexrel
from flexrel.cli import demo, main


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The demo, run once: its directory and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("rich.console.Console.print", lambda _, *a, **k: said.extend(a))
        assert main(["demo", "--out", str(out)]) == 0
    return out, said


def test_the_demo_loses_at_most_a_point_and_most_of_its_bytes(story):
    out, _ = story
    result = json.loads((out / "result.json").read_text())

    achieved = result["achieved"]

    assert achieved["accuracy_dense"] > 0.97
    assert achieved["accuracy"] >= achieved["accuracy_dense"] - 0.01
    assert achieved["bytes"] < 0.75 * achieved["bytes_dense"]
    assert achieved["samples"] == 797
    assert [step["step"] for step in result["recovery"]] == ["closed-form"]


def test_the_demo_measures_magnitude_relevance_and_flexrel(story):
    out, said = story
    result = json.loads((out / "result.json").read_text())

    measured = {result["criterion"], *(rival["criterion"] for rival in result["rivals"])}
    assert measured >= {"magnitude", "relevance"}
    assert len({point["criterion"] for point in result["curves"]}) == 3
    assert any("report.html" in str(line) for line in said)


def test_the_demo_packed_file_has_the_accuracy_it_says(story):
    out, _ = story
    model = flexrel.load(out / "model.flexrel", into=demo.DigitsNetwork())

    accuracy = flexrel.Accuracy(demo.digits().evaluation)(model.eval())

    assert accuracy == json.loads((out / "result.json").read_text())["achieved"]["accuracy"]


def test_digits_are_split_without_overlap():
    data = demo.digits()
    held = torch.cat([x for x, _ in data.evaluation])
    seen = torch.cat([data.train_x, held])

    assert (len(data.train_x), len(held)) == (1000, 797)
    assert torch.equal(torch.cat(data.calibration), data.train_x[:256])
    assert len(torch.unique(seen, dim=0)) > 1790  # a few digits are drawn alike


def test_training_is_the_same_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    data = demo.digits()
    before = torch.random.get_rng_state()

    first, again, other = (demo.train(data, seed).linear2.weight for seed in (3, 3, 4))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_missing_scikit_learn_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)

    assert main(["demo"]) == 2
    assert "flexrel[demo]" in capsys.readouterr().err

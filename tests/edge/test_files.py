"""On disk: whole or not at all, and every message names the file."""

import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest

import flexrel_edge
from flexrel_edge import FlexrelError, PackError
from flexrel_edge.format import describe

TENSORS = {"w": np.float32([[0, 1], [2, 0]])}


def test_write_says_how_many_bytes_and_read_gives_the_arrays(tmp_path):
    path = tmp_path / "w.flexrel"

    size = flexrel_edge.write(path, TENSORS, metadata={"by": "us"})

    assert size == path.stat().st_size
    assert flexrel_edge.read(path)["w"].tolist() == [[0, 1], [2, 0]]
    assert flexrel_edge.read(str(path)).keys() == {"w"}
    assert flexrel_edge.inspect(path) == describe(path.read_bytes())
    assert flexrel_edge.inspect(path).metadata == {"by": "us"}


@pytest.mark.parametrize("broken", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, broken, error
):
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, TENSORS)
    before = path.read_bytes()

    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 2  # it was under way
        raise error

    monkeypatch.setattr(*broken, fail)
    with pytest.raises(type(error)):
        flexrel_edge.write(path, {"w": np.arange(100)})

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_packed_writes_nothing(tmp_path):
    with pytest.raises(FlexrelError):
        flexrel_edge.write(tmp_path / "w.flexrel", {"w": np.zeros(1, complex)})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_a_written_file_has_the_usual_mode_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "usual").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")

    flexrel_edge.write(tmp_path / "link", TENSORS)

    assert (tmp_path / "link").is_symlink()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "target")}
    assert len(modes) == 1


@pytest.mark.parametrize("ask", [flexrel_edge.read, flexrel_edge.inspect])
def test_a_refusal_names_the_file(tmp_path, ask):
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps(TENSORS))

    with pytest.raises(PackError, match="pickles are never read") as caught:
        ask(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("ask", [flexrel_edge.read, flexrel_edge.inspect])
def test_a_missing_file_is_an_ordinary_file_error(tmp_path, ask):
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "none")


@pytest.mark.parametrize("kind", [FlexrelError, PackError])
def test_errors_survive_pickling(kind):
    back = pickle.loads(pickle.dumps(kind("w.flexrel: cut short")))

    assert (type(back), str(back)) == (kind, "w.flexrel: cut short")
    assert isinstance(back, FlexrelError)

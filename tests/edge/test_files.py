"""On disk: whole or not at all, and every message names the file."""

import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import flexrel_edge
from flexrel_edge import FlexrelError, PackError
from flexrel_edge.files import replace_file, replacing
from flexrel_edge.format import describe
from flexrel_edge.trust import write_keys
from kills import killed_before

TENSORS = {"w": np.float32([[0, 1], [2, 0]])}
POSIX = pytest.mark.skipif(os.name != "posix", reason="modes, links and locks as POSIX has them")


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


@POSIX
def test_a_written_file_has_the_usual_mode_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "usual").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")

    flexrel_edge.write(tmp_path / "link", TENSORS)

    assert (tmp_path / "link").is_symlink()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "target")}
    assert len(modes) == 1


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_what_is_replaced_keeps_its_mode_and_is_never_more_open_meanwhile(
    tmp_path, monkeypatch, mode
):
    path, seen = tmp_path / "w.flexrel", []
    flexrel_edge.write(path, TENSORS)
    path.chmod(mode)
    fsync = os.fsync

    def look(handle):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    flexrel_edge.write(path, TENSORS, metadata={"by": "us"})

    assert flexrel_edge.inspect(path).metadata == {"by": "us"}
    assert [*seen, stat.S_IMODE(path.stat().st_mode)] == [mode, mode]


@POSIX
def test_patch_and_sign_keep_the_mode_of_what_they_replace(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    flexrel_edge.write(old, TENSORS)
    flexrel_edge.write(new, {"w": TENSORS["w"] * 2})
    flexrel_edge.diff(old, new, tmp_path / "update")
    write_keys(tmp_path / "a.key", tmp_path / "a.pub")
    old.chmod(0o600)

    flexrel_edge.patch(old, tmp_path / "update", old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    flexrel_edge.sign(old, tmp_path / "a.key")
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    flexrel_edge.patch(new, old, old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


@POSIX
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_next_write_removes_what_a_killed_one_left_and_nothing_else(tmp_path, call):
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, TENSORS)
    others = {".w.flexrel.notes.tmp", ".v.flexrel.01234567.tmp", "w.flexrel.01234567.tmp"}
    for name in others:
        (tmp_path / name).touch()
    assert killed_before(1, lambda: flexrel_edge.write(path, {"w": np.zeros(1)}), (call,))
    assert len(list(tmp_path.iterdir())) == 2 + len(others)

    flexrel_edge.write(path, TENSORS)

    assert {found.name for found in tmp_path.iterdir()} == others | {path.name}


@POSIX
def test_what_somebody_is_writing_is_not_removed(tmp_path):
    path = tmp_path / "w"
    with replacing(path) as slow:
        slow.write(b"slow")
        replace_file(path, b"quick")
        assert path.read_bytes() == b"quick"

    assert path.read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "w"

    def write(number):
        for _ in range(20):
            replace_file(path, bytes([number]) * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    assert len(set(path.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [path]


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

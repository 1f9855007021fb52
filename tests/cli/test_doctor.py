"""`flexrel doctor` tells what is wrong with an installation, and what mends it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flexrel.cli import doctor, main
from flexrel.cli.factories import conflict


def found(name, findings):
    (one,) = [finding for finding in findings if finding.name == name]
    return one


def broken(monkeypatch, tmp_path, name, text):
    """A package that is installed, and raises when it is loaded."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)


def test_what_is_there_has_its_version():
    assert doctor.package("numpy", "numpy", "all", needed=True) == doctor.Finding(
        "numpy", "ok", np.__version__, needed=True
    )


def test_what_is_missing_says_what_it_is_for_and_how_to_install_it():
    assert doctor.package("nosuch-thing", "nosuch", "signatures") == doctor.Finding(
        "nosuch-thing", "missing", "for signatures", "pip install nosuch-thing"
    )


def test_a_torchvision_that_is_of_another_build_says_to_install_both_from_one_place(
    monkeypatch, tmp_path
):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    broken(monkeypatch, tmp_path, "torchvision", text)

    one = doctor.package("torchvision", "torchvision", "torchvision:NAME")

    assert one.state == "broken"
    assert "operator torchvision::nms does not exist" in one.told
    assert "pip install --force-reinstall torch torchvision --index-url" in one.advice


@pytest.mark.parametrize(
    ("torch_version", "source"),
    [
        ("2.13.0", "pip install --force-reinstall torch torchvision"),
        ("2.13.0+cu130", "torchvision --index-url https://download.pytorch.org/whl/cu130"),
    ],
)
def test_the_place_to_install_from_is_that_of_torchs_build(monkeypatch, torch_version, source):
    known = {"torch": torch_version, "torchvision": "0.28.0"}
    monkeypatch.setattr("flexrel.cli.factories.versions", lambda *_: known)

    assert conflict("torchvision").endswith(source)


def test_a_package_that_misses_another_is_broken_and_not_missing(monkeypatch, tmp_path):
    broken(monkeypatch, tmp_path, "halfway", "import nosuch_dependency")

    one = doctor.package("halfway", "halfway", "all")

    assert one.state == "broken"
    assert "No module named 'nosuch_dependency'" in one.told


def test_a_torch_that_is_too_old_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "versions", lambda name: {name: "2.8.0+cpu"})

    one = doctor.package("torch", "torch", "all", needed=True)

    assert (one.state, one.advice) == ("broken", "pip install 'torch>=2.9'")


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        ({"flexrel": "0.1.0", "flexrel-edge": "0.1.0"}, "ok"),
        ({"flexrel": "0.2.0", "flexrel-edge": "0.1.0"}, "broken"),
        ({"flexrel": "0.2.0", "flexrel-edge": None}, "broken"),
    ],
)
def test_both_distributions_have_to_be_of_one_version(monkeypatch, installed, state):
    monkeypatch.setattr(doctor, "versions", lambda *_: installed)

    one = doctor.same_version()

    assert one.state == state
    assert one.needed
    assert ("pip install ./edge ." in one.advice) == (state == "broken")


def with_torch(monkeypatch, *, gpus=0, cuda=None, driver=False):
    known = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    cuda_module = SimpleNamespace(
        is_available=lambda: gpus > 0,
        device_count=lambda: gpus,
        get_device_properties=lambda _: known,
    )
    fake = SimpleNamespace(
        cuda=cuda_module,
        version=SimpleNamespace(cuda=cuda),
        __version__="2.13.0",
        get_num_threads=lambda: 4,
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi" if driver else None)
    return list(doctor.accelerators())


def test_accelerators_are_named(monkeypatch):
    names = [(one.name, one.told) for one in with_torch(monkeypatch, gpus=2, cuda="13.0")[1:]]

    assert names == [("cuda:0", "H100, 80 GiB"), ("cuda:1", "H100, 80 GiB")]


@pytest.mark.parametrize(
    ("cuda", "driver", "state", "says"),
    [
        (None, False, "ok", "none; computed on the CPU"),
        (None, True, "broken", "built without CUDA"),
        ("13.0", True, "broken", "built for CUDA 13.0, but no GPU can be used"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_said(monkeypatch, cuda, driver, state, says):
    one = with_torch(monkeypatch, cuda=cuda, driver=driver)[-1]

    assert one.state == state
    assert says in one.told
    assert bool(one.advice) == (state == "broken")


def test_the_command_prints_a_line_each_and_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_OPTIONAL", (("nosuch-thing", "nosuch", "signatures"),))

    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["findings"]

    assert "missing nosuch-thing: for signatures; pip install nosuch-thing" in lines
    assert any(line == f"ok      torch: {torch.__version__}" for line in lines)
    assert [line.split(": ")[0].split(None, 1)[1] for line in lines] == [o["name"] for o in told]


def test_something_wrong_that_is_needed_exits_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    monkeypatch.setattr(doctor, "_NEEDED", (("nosuch-thing", "nosuch", "all"),))

    assert main(["doctor"]) == 1


def test_doctor_runs_where_torch_does_not(tmp_path):

    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object')")
    code = (
        "import sys; from flexrel.cli import doctor, main; "
        "doctor._OPTIONAL = (); sys.exit(main(['doctor']))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )

    assert done.returncode == 1, done.stderr
    assert "broken  torch:" in done.stdout
    assert "libtorch.so" in done.stdout

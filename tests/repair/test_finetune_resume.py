"""A training that was cut short and started again ends as if nothing had happened."""

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flexrel import FineTune, PackError, UsageError
from trainings import adam, labelled, perceptron, pruned, same, sgd, weights

drawn = settings(
    max_examples=10,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def noise(x, draw):
    return x + 0.05 * torch.randn(x.shape, generator=draw)


class Killed(BaseException):
    """As little to be caught as a signal."""


def killed_after(steps):
    """Return `noise` that ends the process, so to say, at a step."""
    left = [steps]

    def augment(x, draw):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return noise(x, draw)

    augment.__qualname__, augment.__module__ = noise.__qualname__, noise.__module__
    return augment


def train(path, *, augment=noise, epochs=4, data=None, seed=3, **settings):
    dense = perceptron()
    network, plan = pruned(dense)
    tune = FineTune(epochs, data, augment=augment, checkpoint=path, seed=seed, **settings)
    return tune(network, dense, plan, labelled(6))


def loader(count=4):
    """Return a loader that draws its order from torch's own generator."""
    return DataLoader(TensorDataset(*map(torch.cat, zip(*labelled(count), strict=True))), 8, True)


@drawn
@given(
    steps=st.integers(0, 19),
    optimizer=st.sampled_from([None, sgd, adam]),
    shuffling=st.booleans(),
)
def test_a_run_cut_short_at_any_step_goes_on_to_the_same_bits(
    steps, optimizer, shuffling, tmp_path
):
    path = tmp_path / f"{steps}-{optimizer}-{shuffling}"
    settings = {"optimizer": optimizer, "validation": labelled(2, seed=8)}
    if shuffling:
        settings |= {"data": loader(), "validation": loader(2)}
    whole = train(None, **settings)

    with contextlib.suppress(Killed):
        train(path, augment=killed_after(steps), **settings)
    again = train(path, **settings)

    assert again.training == whole.training
    assert same(weights(again.model), weights(whole.model))


def test_early_stopping_remembers_how_long_it_has_waited(tmp_path):
    settings = {"optimizer": functools.partial(torch.optim.SGD, lr=3.0), "patience": 2, "epochs": 9}
    whole = train(None, **settings)
    assert whole.training.early

    with pytest.raises(Killed):
        train(tmp_path / "run", augment=killed_after(5 * whole.training.ran - 1), **settings)

    assert train(tmp_path / "run", **settings).training == whole.training


SCRIPT = """
import sys, torch
from test_finetune_resume import train
trained = train(sys.argv[1] or None, epochs=80, validation=0.2)
torch.save([trained.model.state_dict(), trained.training.validation], sys.argv[2])
"""


def test_a_process_that_is_killed_and_started_again_ends_with_the_same_bits(tmp_path):
    path, out = tmp_path / "run", tmp_path / "out"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}

    def command(*arguments):
        return [sys.executable, "-c", SCRIPT, *map(str, arguments)]

    process = subprocess.Popen(command(path, out), env=environment)
    while not path.exists() and process.poll() is None:  # an epoch takes some milliseconds
        time.sleep(0.001)
    time.sleep(secrets.randbelow(100) / 1000)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was too fast to be killed"
    reached = len(torch.load(path, weights_only=True)["training"])
    subprocess.run(command(path, out), env=environment, check=True)
    again = torch.load(out, weights_only=True)

    expected = train(None, epochs=80, validation=0.2)
    assert 0 < reached < 80
    assert tuple(again[1]) == expected.training.validation
    assert same(again[0], weights(expected.model))


def test_what_is_finished_stays_and_is_returned_at_once(tmp_path):
    path = tmp_path / "run"
    first = train(path)
    written = path.read_bytes()

    again = train(path, augment=killed_after(0))

    assert path.read_bytes() == written
    assert again.training == first.training
    assert same(weights(again.model), weights(first.model))
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 5}, r"epochs \(4 there, 5 here\)"),
        ({"seed": 4}, r"seed \(3 there, 4 here\)"),
        ({"distillation": 0.25}, r"distillation \(0.5 there, 0.25 here\)"),
        ({"temperature": 1.0}, r"temperature \(2.0 there, 1.0 here\)"),
        ({"patience": 3}, r"patience \(None there, 3 here\)"),
        ({"optimizer": adam}, "differ: optimizer;"),
        ({"augment": None}, "augment"),
        ({"precision": "bfloat16"}, r"precision \(auto there, bfloat16 here\)"),
        ({"data": labelled(6, seed=5)}, "data, validation"),
        ({"validation": labelled(1, seed=5)}, "data, validation"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_what_differs_is_said(changed, said, tmp_path):
    train(tmp_path / "run")

    with pytest.raises(UsageError, match=f"is the checkpoint of another run.*{said}") as found:
        train(tmp_path / "run", **changed)

    assert "\n" not in str(found.value)


def test_another_network_or_plan_is_refused(tmp_path):
    dense, data = perceptron(), labelled(4)
    network, plan = pruned(dense)
    tune = FineTune(1, checkpoint=tmp_path / "run")
    tune(network, dense, plan, data)
    other, other_plan = pruned(dense, seed=1)
    wider = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))

    for arguments, said in [
        ((other, dense, other_plan), "differ: pruned weights, plan;"),
        ((network, network, plan), "differ: dense network;"),
        ((*pruned(wider)[:1], wider, pruned(wider)[1]), "pruned network"),
    ]:
        with pytest.raises(UsageError, match=said):
            tune(*arguments, data)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run"
    train(path)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 997)]
    damaged += [
        whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        for place in range(0, len(whole), 211)
    ]
    expected = weights(train(path).model)
    refused = []
    for data in damaged:
        path.write_bytes(data)
        try:
            model = train(path, augment=killed_after(0)).model
        except PackError as error:
            refused.append(str(error))
        else:  # in a byte that says nothing
            assert same(weights(model), expected)
    assert all(line.startswith(str(path)) and "\n" not in line for line in refused)
    assert len(refused) > len(damaged) / 2


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "run"
    for content in ({"weight": torch.ones(2)}, [1], {"format": "flexrel fine-tuning"}):
        torch.save(content, path)
        with pytest.raises(PackError, match=r"is no checkpoint of a training|is version None"):
            train(path)
    path.write_text("not a checkpoint")
    with pytest.raises(PackError, match="is no checkpoint, or it is damaged"):
        train(path)


def test_a_file_that_holds_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"format": "flexrel fine-tuning", "evil": Evil()}, tmp_path / "run")

    with pytest.raises(PackError):
        train(tmp_path / "run")

    assert not (tmp_path / "harm").exists()


class Strange:
    """An object of somebody's own."""


def test_a_schedule_whose_state_could_not_be_read_back_is_refused_at_once(tmp_path):
    class Schedule(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"strange": Strange()}

    with pytest.raises(UsageError, match=r"can't hold this optimizer's or schedule's.*Strange"):
        train(tmp_path / "run", schedule=lambda o, _: Schedule(o, lambda _: 1.0))

    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match="can't be written: No such file"):
        train(tmp_path / "missing" / "run")


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, n),
        lambda o, n: torch.optim.lr_scheduler.MultiStepLR(o, [n // 2]),
        torch.optim.lr_scheduler.PolynomialLR,
    ],
)
def test_schedules_of_torch_are_taken_up_where_they_were(schedule, tmp_path):
    whole = train(None, optimizer=sgd, schedule=schedule)
    with pytest.raises(Killed):
        train(tmp_path / "run", optimizer=sgd, schedule=schedule, augment=killed_after(12))

    again = train(tmp_path / "run", optimizer=sgd, schedule=schedule)

    assert same(weights(again.model), weights(whole.model))

"""A fleet's stats add up, by samples; what can't be used is dropped, and it says which and why."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flexrel import PackError, RelevanceStats, UsageError, calibrate, merge
from networks import random_


def network(width=5):
    return random_(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)))


def seen(count, seed, **options):
    draw = torch.Generator().manual_seed(seed)
    return calibrate(network(), [torch.randn(count, 4, generator=draw)], **options)


@pytest.fixture
def fleet(tmp_path):
    """Three devices' files, and their stats."""
    stats = [seen(count, seed=count) for count in (3, 5, 8)]
    for number, one in enumerate(stats):
        one.save(tmp_path / f"device-{number}")
    return [tmp_path / f"device-{number}" for number in range(3)], stats


def test_a_fleets_stats_are_those_of_all_its_samples(fleet):
    files, stats = fleet

    merged = merge(files)

    assert merged.stats.samples == 16
    for name in stats[0]:
        for field, tensor in merged.stats[name].sums().items():
            parts = [one[name].sums()[field] for one in stats]
            torch.testing.assert_close(tensor, parts[0] + parts[1] + parts[2])
    assert merged.used == tuple(map(str, files))
    assert merged.dropped == ()


def with_nan(path):
    tensors = load_file(path)
    tensors["0|input"][1] = float("nan")
    about = RelevanceStats.load(path)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    save_file(tensors, path, header["__metadata__"])
    return about


def stranger(path):
    calibrate(network(width=7), [torch.ones(2, 4)]).save(path)


def of_another_output(path):
    seen(3, 9, output="norm").save(path)


def far_too_many(path):
    replace(seen(3, 9), samples=1e9).save(path)


def of_no_sample(path):
    seen(3, 9).scaled(0.0).save(path)


def negative(path):
    replace(seen(3, 9), samples=-1.0).save(path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5])


def another_shape(path):
    other = calibrate(network(width=7), [torch.ones(2, 4)])
    replace(other, model=seen(3, 9).model).save(path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (with_nan, "is damaged: relevance has a NaN or an infinity"),
        (stranger, "is of network "),
        (of_another_output, "output norm; most are of network "),
        (far_too_many, "counts 1,000,000,000 samples; above 0 and up to 100,000,000 can be"),
        (of_no_sample, "counts 0 samples"),
        (negative, "it counts -1.0 samples"),
        (cut_off, "is no file of stats, or it is damaged"),
        (another_shape, "stats of layers of different shapes"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_what_cant_be_used_is_dropped_with_the_reason(fleet, spoil, says, place):
    files, stats = fleet
    if spoil is another_shape and place == 0:
        return  # it is the first: nobody can tell that it is not the others that are wrong
    spoil(files[place])

    merged = merge(files)

    ((name, reason),) = merged.dropped
    assert name == str(files[place])
    assert says in reason
    assert "\n" not in reason
    assert merged.stats.samples == 16 - stats[place].samples


def test_a_file_counts_once_whatever_it_is_called(fleet, tmp_path):
    files, _ = fleet
    (tmp_path / "copy").write_bytes(files[1].read_bytes())

    merged = merge([*files, tmp_path / "copy", files[0]])

    assert merged.stats.samples == 16
    assert merged.dropped == (
        (str(tmp_path / "copy"), f"is the same as {files[1]}"),
        (str(files[0]), f"is the same as {files[0]}"),
    )


def test_where_nothing_is_left_it_is_an_error(fleet, tmp_path):
    files, _ = fleet
    cut_off(files[0])

    with pytest.raises(PackError, match=r"no file of stats can be used: .*device-0: is no file"):
        merge(files[:1])
    with pytest.raises(UsageError, match="no such file of stats"):
        merge([files[1], tmp_path / "missing"])
    with pytest.raises(UsageError, match="name at least one"):
        merge([])


def test_what_was_merged_merges_again(fleet, tmp_path):
    files, _ = fleet
    merge(files[:2]).stats.save(tmp_path / "two")

    assert merge([tmp_path / "two", files[2]]).stats.samples == 16

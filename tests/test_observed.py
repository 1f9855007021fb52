"""Moments of a fleet: merged by samples, what can't be used dropped, calibration data weighed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import flexrel
import flexrel_edge
from flexrel import PackError, UsageError, observed
from flexrel.cli import main
from flexrel.observed import merge_moments, weighed
from flexrel_edge import Moments, Observer, read_moments
from flexrel_edge.observe import sealed
from flexrel_edge.trust import write_keys
from observing import network, requests, taken_in, write

NETWORK, OTHER = "ab" * 32, "cd" * 32


def moments(device, counter=1, samples=10.0, requests=None, value=1.0, network=NETWORK):
    """Return moments of two layers, all of one value."""
    layers = {name: np.full((2, width), value, np.float32) for name, width in (("a", 3), ("b", 2))}
    requests = 100 * counter if requests is None else requests
    return Moments(network, f"{device:016x}", counter, requests, float(samples), layers)


def saved(folder, *found, key=None):
    """Write moments to files, and return their paths."""
    paths = [str(folder / f"{at}.moments") for at in range(len(found))]
    for path, one in zip(paths, found, strict=True):
        flexrel_edge.send(sealed(one, key), path)
    return paths


def test_each_device_counts_by_its_samples(tmp_path):
    files = saved(tmp_path, moments(1, samples=10, value=1), moments(2, samples=30, value=5))

    found = merge_moments(files)

    assert found.used == tuple(files)
    assert found.dropped == ()
    assert (found.moments.samples, found.moments.requests) == (40, 200)
    for both in found.moments.layers.values():
        np.testing.assert_allclose(both, (10 * 1 + 30 * 5) / 40)
    again = saved(tmp_path, found.moments, moments(3, samples=40, value=0))
    merged = merge_moments(again).moments
    assert merged.samples == 80
    assert len(merged.devices) == 3


def of_another_network(_):
    return moments(9, network=OTHER)


def of_other_layers(_):
    return replace(moments(9), layers={"a": np.ones((2, 4), np.float32)})


def of_too_many_samples(_):
    return moments(9, samples=1e9)


def written_earlier(_):
    return moments(1, counter=2)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (of_another_network, "is of network cdcdcdcd; most are of abababab"),
        (of_other_layers, "has other layers than most"),
        (of_too_many_samples, "counts 1,000,000,000 samples; up to 100,000,000 can be"),
        (written_earlier, "is of device 00000000, which has written"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_what_cant_be_used_is_dropped_with_the_reason(spoil, says, place, tmp_path):
    good = [moments(1, counter=3), moments(2)]
    files = saved(tmp_path, *good[:place], spoil(good), *good[place:])

    found = merge_moments(files)

    ((name, reason),) = found.dropped
    assert (name, found.moments.samples) == (files[place], 20)
    assert says in reason
    assert "\n" not in reason


def test_damaged_files_those_with_a_nan_and_copies_are_dropped(tmp_path):
    good, cut, nan, copy = saved(tmp_path, *(moments(device) for device in range(4)))
    data = bytearray(Path(cut).read_bytes())
    data[-1] ^= 1
    flexrel_edge.send(bytes(data), cut)
    texts = flexrel_edge.inspect(nan).metadata
    flexrel_edge.write(nan, {"a": np.full((2, 3), np.nan, np.float32)}, metadata=texts)
    flexrel_edge.send(sealed(moments(0), None), copy)

    found = merge_moments([good, cut, nan, copy, good])

    assert found.used == (good,)
    says = dict(found.dropped[:3])
    assert "the checksum is" in says[cut]
    assert "moments of layer 'a' have a NaN" in says[nan]
    assert says[copy] == f"is the same as {good}"
    assert found.dropped[3] == (good, f"is the same as {good}")


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (moments(1, counter=3, requests=900), "counter 3 after 5, and 900 requests after 500"),
        (moments(1, counter=7, requests=400), "counter 7 after 5, and 400 requests after 500"),
    ],
)
def test_a_device_whose_counts_went_back_since_the_last_merge_is_dropped(now, says, tmp_path):
    files = saved(tmp_path, moments(1, counter=5), moments(2))
    last = tmp_path / "last"
    last.write_bytes(merge_moments(files).moments.encode())
    files = saved(tmp_path, now, moments(2, counter=4))

    found = merge_moments(files, since=last)

    ((name, reason),) = found.dropped
    assert name == files[0]
    assert says in reason
    assert found.used == (files[1],)


def test_two_devices_of_one_name_are_both_dropped(tmp_path):
    pair = [moments(1, counter=4, value=3), moments(1, counter=4, requests=7, value=4)]
    files = saved(tmp_path, *pair, moments(2))

    found = merge_moments(files)

    assert found.used == (files[2],)
    assert all("two devices have one name" in reason for _, reason in found.dropped)


def test_with_keys_files_of_strangers_are_dropped(tmp_path):
    write_keys(tmp_path / "ours.key", tmp_path / "ours.pub")
    (tmp_path / "signed").mkdir()
    (good,) = saved(tmp_path / "signed", moments(1), key=tmp_path / "ours.key")
    files = [good, *saved(tmp_path, moments(2))]

    found = merge_moments(files, trust=tmp_path / "ours.pub")

    assert found.used == (good,)
    assert "is not signed" in found.dropped[0][1]


def test_where_nothing_is_left_it_is_an_error_and_urls_are_read(tmp_path):
    files = saved(tmp_path, moments(1))
    flexrel_edge.send(Path(files[0]).read_bytes(), "memory://fleet/1.moments")

    assert merge_moments(["memory://fleet/1.moments"]).moments.samples == 10
    with pytest.raises(PackError, match=r"no file of moments can be used: .*counts 10 samples"):
        merge_moments(files, 5)
    with pytest.raises(UsageError, match="no such file of moments"):
        merge_moments([tmp_path / "missing"])
    with pytest.raises(UsageError, match="name at least one"):
        merge_moments([])


# --- calibration data -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_use(tmp_path_factory):
    """A packed network, calibration data of two kinds, and moments of requests of the second."""
    folder = tmp_path_factory.mktemp("in_use")
    packed = write(folder / "net.flexrel", network())
    kinds = [*requests(20), *(x + np.float32(2) for x in requests(20))]
    data = [torch.from_numpy(x) for x in np.array_split(np.concatenate(kinds), 5)]
    with Observer(packed, folder / "out", share=1.0, threads=1) as net:
        for x in requests(60, seed=1):
            net(x + np.float32(2))
    return packed, data, folder / "out"


def test_calibration_data_are_weighed_to_what_the_fleet_saw(in_use):
    packed, data, out = in_use

    found = weighed(network(), data, read_moments(out), packed)

    shifted = torch.cat([x.mean((1, 2, 3)) for x in data]) > 1
    weights = found.balance.weights
    assert float(weights[shifted].sum() / weights.sum()) > 0.95  # a half of all
    names = list(read_moments(out).layers)
    rows = taken_in(network(), names, torch.cat(data))
    for name, both in read_moments(out).layers.items():  # by hand: the means of weighted samples
        each = rows[name].reshape(len(weights), -1, both.shape[1]).mean(1)
        even, here = each.mean(0), (each * weights[:, None]).sum(0) / weights.sum()
        goal = torch.from_numpy(both[0]).double()
        assert float((here - goal).norm()) < 0.35 * float((even - goal).norm())
    kept = torch.cat([batch.weights for batch in found.batches])
    assert found.samples == len(kept) <= int(shifted.sum()) + 4
    assert kept.sum() >= 0.95 * weights.sum() - 1e-3
    (note,) = found.notes
    assert note.startswith(f"{found.samples} of {len(weights)} calibration samples are like")


def test_requests_unlike_all_calibration_data_are_said_to_be(in_use):
    packed, data, out = in_use
    whole = read_moments(out)
    far = {name: both + np.float32(100) for name, both in whole.layers.items()}

    found = weighed(network(), data, replace(whole, layers=far), packed)

    assert "the requests are unlike any mix of the calibration samples" in found.notes[1]


def test_moments_say_nothing_of_another_network(in_use, tmp_path):
    packed, data, out = in_use
    other = write(tmp_path / "other.flexrel", network(), by="somebody else")

    with pytest.raises(UsageError, match=r"the moments are of network .*name the file that the"):
        weighed(network(), data, read_moments(out), other)
    strange = replace(read_moments(out), layers={"none": np.ones((2, 3), np.float32)})
    with pytest.raises(UsageError, match="the moments have a layer 'none'"):
        weighed(network(), data, strange, packed)


def test_the_commands_merge_moments_and_prune_by_them(in_use, tmp_path, monkeypatch, capsys):
    packed, data, out = in_use
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=torch.cat(data).numpy())
    (tmp_path / "net.py").write_text("from observing import network\n")
    prune = ["prune", "net.py:network", "--calibration", "data.npz", "--budget", "macs=70%"]
    prune += ["--recover", "none", "--criterion", "relevance", "--out", "new", "--statistics"]

    assert main(["merge", str(out), "-o", "fleet.moments"]) == 0
    assert "fleet.moments: 1 of 1 files, 4 layers, " in capsys.readouterr().out
    assert main([*prune, "fleet.moments", "--observed-with", str(packed)]) == 0
    assert "calibration samples are like the requests" in capsys.readouterr().err
    result = json.loads(Path("new/result.json").read_text())
    found = weighed(network(), data, read_moments("fleet.moments"), packed)
    assert result["options"]["calibration_samples"] == found.samples
    assert main([*prune, "fleet.moments", "--overwrite"]) == 2
    assert "name its packed file with --observed-with" in capsys.readouterr().err
    stats = flexrel.calibrate(network(), data)
    stats.save("some.stats")
    assert main([*prune, "some.stats", "--observed-with", str(packed), "--overwrite"]) == 2
    assert "goes with --statistics and a file of moments" in capsys.readouterr().err


def test_all_that_is_promised_is_there():
    assert flexrel.observed is observed
    assert all(hasattr(observed, name) for name in observed.__all__)

"""What a device without torch observes: layers' inputs on average, in a small file, never torn."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

import flexrel_edge
from flexrel_edge import FlexrelError, Observer, PackError, read_moments
from flexrel_edge.about import about
from flexrel_edge.cli import main
from flexrel_edge.moments import Moments, moments_in
from flexrel_edge.observe import sealed
from flexrel_edge.trust import write_keys
from kills import killed_before
from observing import network, requests, taken_in, write

DRAW = np.random.default_rng(0)
EVER = 1e300  # samples until one counts half


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory):
    return write(tmp_path_factory.mktemp("packed") / "net.flexrel", model)


def everything(packed, out, inputs, **options):
    """Return the moments of a device that observes all of these."""
    with Observer(packed, out, **{"share": 1.0, "half_life": EVER, "threads": 1} | options) as net:
        for x in inputs:
            net(x)
    return read_moments(out)


def test_moments_are_the_means_of_what_torch_gives_the_layers(model, packed, tmp_path):
    inputs = requests(5)

    found = everything(packed, tmp_path / "out", inputs)

    names = ["body.first", "body.grouped", "mix", "head"]  # the twin takes in what mix does
    assert set(found.layers) == set(names)
    whole = taken_in(model, names, np.concatenate(inputs))
    for name, rows in whole.items():
        expected = torch.stack([rows.mean(0), rows.square().mean(0)])
        np.testing.assert_allclose(found.layers[name], expected, rtol=1e-4, atol=1e-5)
    assert found.samples == pytest.approx(sum(map(len, inputs)))
    assert (found.requests, found.counter) == (5, 1)
    assert found.network == flexrel_edge.inspect(packed).sha256


def test_answers_are_those_of_the_plain_graph_whoever_answers(model, packed, tmp_path):
    with Observer(packed, tmp_path / "out", share=0.5, seed=0, threads=1) as net:
        for x in requests(8):
            outputs = net({"x": x})
            expected = model(torch.from_numpy(x)).detach()
            assert set(outputs) == {"output"}
            np.testing.assert_allclose(outputs["output"], expected, atol=1e-4)
    plain = flexrel_edge.session(packed)
    told = dict(about(flexrel_edge.inspect(packed)))
    assert told["graph"] == "ONNX, of any number of samples a call; it can tell what layers take in"

    assert [node.name for node in plain.get_outputs()] == ["output"]
    assert 0 < read_moments(tmp_path / "out").samples < 16


def test_what_was_long_ago_counts_less(model, packed, tmp_path):
    ones = np.ones((1, 2, 6, 6), np.float32)

    found = everything(packed, tmp_path / "out", [ones, 2 * ones, 4 * ones], half_life=1.0)

    assert found.samples == 1.75  # 1/4 + 1/2 + 1
    np.testing.assert_allclose(found.layers["body.first"][0], (0.25 + 2 * 0.5 + 4) / 1.75)


def test_a_device_goes_on_where_it_was_and_begins_anew_with_another_network(
    model, packed, tmp_path
):
    out, inputs = tmp_path / "out", requests(6)
    first = everything(packed, out, inputs[:3])
    both = everything(packed, out, inputs[3:])
    whole = everything(packed, tmp_path / "whole", inputs)
    other = tmp_path / "other.flexrel"
    other.write_bytes(packed.read_bytes())
    contents = flexrel_edge.inspect(other)
    weights = flexrel_edge.read(other)
    weights["head.bias"] += 1
    flexrel_edge.write(other, weights, metadata=contents.metadata)
    anew = everything(other, out, inputs[:1])

    for name, expected in whole.layers.items():
        np.testing.assert_allclose(both.layers[name], expected, rtol=1e-5, atol=1e-6)
    assert (both.samples, both.counter, both.requests) == (whole.samples, 2, 6)
    assert (anew.counter, anew.requests, anew.samples) == (3, 7, len(inputs[0]))
    assert first.device == both.device == anew.device != whole.device


def test_no_request_is_hurt_and_a_nan_is_left_out(packed, tmp_path):
    with Observer(packed, tmp_path / "out", share=1.0, half_life=EVER, threads=1) as net:
        net(np.ones((1, 2, 6, 6), np.float32))
        assert np.isnan(net(np.full((1, 2, 6, 6), np.nan, np.float32))["output"]).all()
        with pytest.raises(FlexrelError, match="can't run on these inputs"):
            net(np.ones((1, 3, 6, 6), np.float32))

    assert "no numbers" in net.error
    assert read_moments(tmp_path / "out").samples == 1


def resnet20():
    """Return moments of the 21 inputs of layers of a resnet20, and its 22nd, with full digits."""
    channels = {"conv1": 3, "linear": 64}
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            name, first = f"layer{stage}.{block}", block == 0 and stage > 1
            channels |= {f"{name}.conv1": width // 2 if first else width, f"{name}.conv2": width}
    numbers = {name: np.abs(DRAW.standard_normal((2, n))) for name, n in channels.items()}
    layers = {name: both.astype(np.float32) for name, both in numbers.items()}
    return Moments("ab" * 32, "cd" * 8, 12_345, 10**7, 12_345.678, layers)


def test_those_of_a_resnet20_take_10_kilobytes_at_most_signed(tmp_path):
    write_keys(tmp_path / "device.key", tmp_path / "device.pub")
    path = tmp_path / "out"
    path.write_bytes(sealed(resnet20(), tmp_path / "device.key"))

    assert path.stat().st_size <= 10_000
    found = read_moments(path, tmp_path / "device.pub")
    assert flexrel_edge.inspect(path).counter == found.counter == 12_345
    write_keys(tmp_path / "other.key", tmp_path / "other.pub")
    with pytest.raises(PackError, match="by none of the keys"):
        read_moments(path, tmp_path / "other.pub")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": -1.0}, "of -1.0 samples"),
        ({"samples": float("inf")}, "of inf samples"),
        ({"counter": -1}, "are no counts"),
        ({"device": "../../etc"}, "is no name"),
        ({"layers": {}}, "of no layer"),
        ({"layers": {"a": np.full((2, 3), np.nan, np.float32)}}, "'a' have a NaN"),
        ({"layers": {"a": np.full((2, 3), -1, np.float32)}}, "a square below 0"),
        ({"layers": {"a": np.ones((3, 3), np.float32)}}, r"float32 \[3, 3\]; they are float32 \[2"),
        ({"fleet": {"ab" * 8: (1, 1)}}, "of one device or of a fleet"),
    ],
)
def test_moments_that_make_no_sense_are_refused(change, says):
    whole = resnet20()
    fields = {name: getattr(whole, name) for name in Moments.__dataclass_fields__}

    with pytest.raises(PackError, match=says):
        Moments(**fields | change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "fleet": 3}'])
def test_what_a_file_says_of_its_moments_is_checked(text, tmp_path):
    path = tmp_path / "out"
    flexrel_edge.write(path, {"a": np.ones((2, 3), np.float32)}, metadata={"observed": text})

    with pytest.raises(PackError, match=r"out: (what it says|has moments of version 2)"):
        read_moments(path)


def test_a_file_without_taps_and_arguments_without_sense_are_refused(model, packed, tmp_path):
    plain = tmp_path / "plain.flexrel"
    contents = flexrel_edge.inspect(packed)
    texts = {key: text for key, text in contents.metadata.items() if key != "onnx_taps"}
    flexrel_edge.write(plain, flexrel_edge.read(packed), metadata=texts)

    with pytest.raises(FlexrelError, match=r"pack it so: flexrel pack --graph DATA --observe"):
        Observer(plain, tmp_path / "out")
    with pytest.raises(FlexrelError, match="share=0"):
        Observer(packed, tmp_path / "out", share=0)
    with pytest.raises(FlexrelError, match="every=-1"):
        Observer(packed, tmp_path / "out", every=-1)
    with pytest.raises(PackError, match="holds no moments"):
        Observer(packed, plain)


class Taking(BaseHTTPRequestHandler):
    """Takes files by PUT, or refuses them."""

    def log_message(self, *_):
        """Say nothing."""

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came[self.path] = data
        self.send_response(self.server.status)
        self.end_headers()


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        server.came, server.status = {}, 201
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_file_is_sent_too_and_what_refuses_it_hurts_no_request(packed, tmp_path, server):
    url, out = f"http://127.0.0.1:{server.server_port}/a/device.moments", tmp_path / "out"
    everything(packed, out, requests(1), to=url)

    assert server.came == {"/a/device.moments": out.read_bytes()}
    everything(packed, out, requests(1), to=str(tmp_path / "beside"))
    assert (tmp_path / "beside").read_bytes() == out.read_bytes()
    everything(packed, out, requests(1), to=f"memory://{tmp_path}/there")  # an object store's like
    assert (tmp_path / "out").stat().st_size

    server.status = 403
    net = Observer(packed, out, share=1.0, every=0.01, to=url, threads=1)
    net(requests(1)[0])
    while not net.error:
        threading.Event().wait(0.001)
    assert net(requests(1)[0])["output"].shape == (1, 3)
    with pytest.raises(FlexrelError, match="refuses it: 403"):
        net.close()
    assert read_moments(out).requests >= 4  # it is written here all the same


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_kill_at_any_call_of_the_system_leaves_the_old_file_or_the_new_one(tmp_path):
    path, moments = tmp_path / "out", resnet20()
    new = Moments(*("ef" * 32, "cd" * 8, 1, 1, 1.0), moments.layers).encode()
    old = moments.encode()
    number = 1
    path.write_bytes(old)
    while killed_before(number, lambda: flexrel_edge.send(new, str(path))):
        assert path.read_bytes() in (old, new)
        number += 1
    assert number > 2
    assert path.read_bytes() == new
    assert len([*tmp_path.iterdir()]) == 1


def test_the_command_observes_requests_in_files(packed, tmp_path, capsys):
    spool = tmp_path / "spool"
    spool.mkdir()
    for at, x in enumerate(requests(3)):
        np.save(spool / f"{at}.npy", x)
    out, words = str(tmp_path / "out"), ["observe", str(packed), "--out", str(tmp_path / "out")]

    assert main([*words, "--input", str(spool)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 4 layers on 6 samples, after 3 more")
    assert main([*words, "--input", str(spool / "0.npy"), "--json"]) == 0
    assert read_moments(out).requests == 4
    (tmp_path / "none").mkdir()
    assert main([*words, "--input", str(tmp_path / "none")]) == 1
    assert "no .npy or .npz in this folder" in capsys.readouterr().err


def test_the_signed_counter_is_that_of_the_file(tmp_path):
    write_keys(tmp_path / "device.key", tmp_path / "device.pub")
    path = tmp_path / "out"
    path.write_bytes(resnet20().encode())
    flexrel_edge.sign(path, tmp_path / "device.key", 99)

    with pytest.raises(PackError, match="signed with counter 99, but says 12345"):
        read_moments(path)
    with flexrel_edge.files.opened(path) as reader, pytest.raises(PackError, match="counter 99"):
        moments_in(reader)

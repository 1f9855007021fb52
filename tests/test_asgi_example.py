"""The server of examples/asgi_server, called as an ASGI server calls it: no socket is opened."""

import asyncio
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flexrel import calibrate
from flexrel.online import Recalibrator
from networks import random_

PATH = Path(__file__).parents[1] / "examples" / "asgi_server" / "app.py"


def example():
    spec = importlib.util.spec_from_file_location("asgi_server", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network():
    return random_(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))).eval()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


async def asked(app, method, path, body=b"", parts=2):
    """Return status and content of an answer; the body comes in parts."""
    size = -(-len(body) // parts) or 1
    chunks = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": chunk is not chunks[-1]}
        for chunk in chunks
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": method, "path": path}, receive, send)
    start, rest = sent
    return start["status"], json.loads(rest["body"])


async def lived(app, work):
    """Start the application, do some work, and shut it down, as a server does."""
    told, said, started = asyncio.Queue(), [], asyncio.Event()

    async def send(message):
        said.append(message["type"])
        started.set()

    life = asyncio.create_task(app({"type": "lifespan"}, told.get, send))
    await told.put({"type": "lifespan.startup"})
    await started.wait()
    await work()
    await told.put({"type": "lifespan.shutdown"})
    await life
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_server_answers_measures_and_saves_what_it_learnt_when_it_ends(tmp_path):
    state, x = tmp_path / "state", np.ones((2, 4), np.float32)
    app = example().Server(network, max_overhead=1e12, state=state)

    async def work():
        status, scores = await asked(app, "POST", "/scores", npy(x))
        assert status == 200
        torch.testing.assert_close(torch.tensor(scores), network()(torch.from_numpy(x)))
        assert (await asked(app, "POST", "/scores", b"no array"))[0] == 400
        assert (await asked(app, "POST", "/scores", npy(np.ones((2, 5)))))[0] == 400
        assert (await asked(app, "POST", "/scores", bytes(2**20 + 1)))[0] == 413
        assert (await asked(app, "GET", "/"))[0] == 404
        assert (await asked(app, "GET", "/observed"))[1]["requests"] == 1

    asyncio.run(lived(app, work))

    with Recalibrator(network(), state=state) as answer:
        found = answer.stats()
    assert found.samples == 2
    expected = calibrate(network(), [torch.from_numpy(x)])
    torch.testing.assert_close(found["0"].input, expected["0"].input)

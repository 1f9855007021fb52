"""A server that answers with a network, and learns from its requests what matters in it.

pip install uvicorn
uvicorn app:app --app-dir examples/asgi_server

It is plain ASGI, so any server that speaks it will do, and a framework's routes look alike. `POST
/scores` takes an array in numpy's .npy and answers with scores; `GET /observed` tells what was
measured. The recalibrator starts with the server and is closed with it, which saves its state.
Requests are answered in worker threads, so the event loop is never held up.
"""

import asyncio
import io
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from flexrel.cli import demo
from flexrel.online import Recalibrator

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LARGEST = 2**20  # bytes of a request


class Server:
    """An ASGI application around a network.

    Args:
        make: returns the network; called when the server starts.
        options: of the `Recalibrator`.
    """

    def __init__(self, make: Callable[[], nn.Module], **options: Any) -> None:  # noqa: ANN401
        self._make, self._options = make, options
        self.answer: Recalibrator | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, content = await self._answered(scope, receive)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            body = json.dumps(content).encode()
            await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start and close the recalibrator with the server."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.answer = Recalibrator(self._make(), **self._options)
                await send({"type": "lifespan.startup.complete"})
            else:
                if self.answer is not None:
                    await asyncio.to_thread(self.answer.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answered(self, scope: Message, receive: Receive) -> tuple[int, Any]:
        """Return the status and the content of an answer."""
        if self.answer is None:
            return 503, {"error": "the server's lifespan has not begun"}
        match scope["method"], scope["path"]:
            case "GET", "/observed":
                return 200, asdict(self.answer.observed())
            case "POST", "/scores":
                body = b""
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > LARGEST:
                        return 413, {"error": f"a request has {LARGEST:,} bytes at most"}
                    if not message.get("more_body"):
                        break
                return await asyncio.to_thread(scores, self.answer, body)
            case _:
                return 404, {"error": "POST /scores or GET /observed"}


def scores(answer: Callable[[torch.Tensor], torch.Tensor], body: bytes) -> tuple[int, Any]:
    """Return the status and the answer to an array in .npy."""
    try:
        array = np.load(io.BytesIO(body), allow_pickle=False)
        with torch.inference_mode():
            return 200, answer(torch.from_numpy(array).float()).tolist()
    except (ValueError, EOFError, TypeError, RuntimeError) as error:
        return 400, {"error": str(error)}


def network() -> nn.Module:
    """Return a network for handwritten digits; yours is loaded here."""
    torch.set_num_threads(1)  # of one request; as many requests run at a time as there are threads
    return demo.train(demo.digits())


app = Server(network, state=os.environ.get("RELEVANCE_STATE", "relevance.state"))

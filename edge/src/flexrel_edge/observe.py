"""A network in use that tells what its layers take in: on devices without torch.

A share of the requests, chosen by chance, is answered by a second session of the same network,
whose graph has more outputs: the mean and the mean square of what each layer takes in. Nothing
else of a request is kept.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flexrel_edge.errors import FlexrelError
from flexrel_edge.files import inspect, opened, replace_file
from flexrel_edge.format import Reader
from flexrel_edge.moments import MEAN, SQUARE, Moments, added, moments_in, told
from flexrel_edge.records import Array
from flexrel_edge.send import send
from flexrel_edge.session import CPU, run, session
from flexrel_edge.source import InMemory
from flexrel_edge.trust import FilePath, signature_of

_LOG = logging.getLogger(__name__)


class Observer:
    """Answers requests with a packed network, and writes what its layers take in.

        with Observer("model.flexrel", "device.moments") as answer:
            scores = answer({"x": images})["output"]  # from any thread

    Args:
        path: of the packed file, packed with its graph so that it can tell: `flexrel pack --graph
            DATA --observe`, `flexrel prune --export observe`.
        out: file of moments, which a process that comes later goes on with; of another version of
            the network it begins anew, as the same device.
        share: of the requests that is observed, in (0, 1].
        half_life: after so many further observed samples one counts half.
        every: seconds between two times that the file is written, if there is something new.
        to: where it is sent too, each time: as `send` takes it; None: nowhere.
        key: PEM file of a private key, which signs the file.
        trust: PEM file of public keys, one of which must have signed the network.
        providers: of onnxruntime.
        threads: that one call may use; 0: one a core.
        seed: of which requests are observed; None: another each time.

    Raises:
        PackError: a file is damaged, or the network not trusted.
        FlexrelError: an argument makes no sense, the network can't tell, or there is no
            onnxruntime.
        OSError: a file can't be read.
    """

    def __init__(
        self,
        path: FilePath,
        out: FilePath,
        *,
        share: float = 0.05,
        half_life: float = 10_000.0,
        every: float = 60.0,
        to: str | None = None,
        key: FilePath | None = None,
        trust: FilePath | None = None,
        providers: Sequence[str] = CPU,
        threads: int = 0,
        seed: int | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise FlexrelError(f"share={share}: the share of requests is above 0 and at most 1")
        for name, value in (("half_life", half_life), ("every", every)):
            if not value > 0:
                raise FlexrelError(f"{name}={value} must be above 0")
        self._out, self._to, self._key = Path(out), to, key
        self._share, self._half_life, self._every = share, half_life, every
        self._network = inspect(path, trust).sha256
        self._plain = session(path, providers, threads, trust)
        self._telling = session(path, providers, threads, trust, observing=True)
        self._draw = random.Random(seed)  # noqa: S311 - it draws samples, no secrets
        self._changed = threading.Condition()  # guards what is below
        self._device, self._counter, self._requests = secrets.token_hex(8), 0, 0
        self._samples = 0.0
        self._layers: dict[str, Array] = {}
        self._new = self._closed = False
        self.error = ""  # what the last failure to write or send said; "" if there was none
        if self._out.exists():
            self._go_on(read_moments(self._out))
        self._saving = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="flexrel-observe", daemon=True)
        self._thread.start()

    def __call__(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Return the network's outputs by name.

        Args:
            inputs: as `flexrel_edge.session.run` takes them; the first axis counts samples.

        Raises:
            FlexrelError: they are not those of the network, or it can't run on them.
        """
        with self._changed:
            observed = not self._closed and self._draw.random() < self._share
        outputs = run(self._telling if observed else self._plain, inputs).outputs
        with self._changed:
            self._requests += 1
            if observed:
                first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
                self._take(told(outputs), float(first.shape[0] if first.ndim else 1))
        return {k: v for k, v in outputs.items() if not k.endswith((MEAN, SQUARE))}

    def moments(self) -> Moments:
        """Return what was observed, with what the file had before.

        Raises:
            FlexrelError: nothing was.
        """
        with self._changed:
            if not self._samples:
                raise FlexrelError(f"none of {self._requests:,} requests was observed yet")
            layers = {name: both.astype(np.float32) for name, both in self._layers.items()}
            counts = self._counter, self._requests
            return Moments(self._network, self._device, *counts, self._samples, layers)

    def save(self) -> None:
        """Write the file now, beside the old one, and rename; then send it, if it is to be sent.

        Raises:
            FlexrelError: nothing was observed, the key is none, or it can't be sent.
            OSError: it can't be written; the old one is whole.
        """
        with self._saving:
            with self._changed:
                self._counter, self._new = self._counter + 1, False
            try:
                data = sealed(self.moments(), self._key)
                replace_file(self._out, data)
                if self._to is not None:
                    send(data, self._to)
            except (OSError, FlexrelError):
                with self._changed:
                    self._new = True
                raise

    def close(self) -> None:
        """Write what is new, and observe no more; requests are answered all the same.

        Raises:
            FlexrelError: as `save`.
            OSError: likewise.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if self._new:
            self.save()

    def __enter__(self) -> Observer:  # noqa: PYI034 - the type checks of tests want a name
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_on(self, old: Moments) -> None:
        self._device, self._counter, self._requests = old.device, old.counter, old.requests
        if old.network == self._network:
            self._samples = old.samples
            self._layers = {name: both.astype(np.float64) for name, both in old.layers.items()}

    def _take(self, layers: dict[str, Array], samples: float) -> None:
        """Add what was observed; moments that are no numbers are left out, and said."""
        if not all(np.isfinite(both).all() for both in layers.values()):
            self._told("a request made moments that are no numbers; they are left out")
            return
        left = self._samples * 0.5 ** (samples / self._half_life)
        self._layers = added(self._layers, left, layers, samples)
        self._samples, self._new = left + samples, True

    def _work(self) -> None:
        """Write what is new each time the seconds are over, until it is closed."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, self._every):
                    return
                due = self._new
            if due:
                try:
                    self.save()
                except (OSError, FlexrelError) as error:
                    self._told(str(error))

    def _told(self, error: str) -> None:
        """Keep what went wrong, and log the first of it."""
        first, self.error = not self.error, error
        if first:
            _LOG.warning("%s", error)


def sealed(moments: Moments, key: FilePath | None) -> bytes:
    """Return the bytes of a file of moments, signed with its counter if there is a key.

    Raises:
        FlexrelError: the key is none, or the extra `trust` is missing.
    """
    data = moments.encode()
    if key is None:
        return data
    reader = Reader(InMemory(data))
    signed = signature_of(reader.header.sha256, moments.counter, key)
    return b"".join(reader.resealed(signed))


def read_moments(path: FilePath, trust: FilePath | None = None) -> Moments:
    """Return what a file of moments holds, verified.

    Args:
        path: of the file.
        trust: PEM file of public keys, one of which must have signed it; None: nobody need have.

    Raises:
        PackError: it is damaged, not trusted, or something else; the message begins with the path.
        OSError: it can't be read.
    """
    with opened(path, trust) as reader:
        return moments_in(reader)

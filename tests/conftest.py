"""What the tests share."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Torch waits for its threads longer than it takes to compute with such tiny tensors. It reads
# this when it is loaded, also in subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes, to make or to run, is no promise: it fails on a busy machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def unchecked():
    """Annotations are not checked, as in use, so that the library's own checks are reached."""
    from jaxtyping import config  # noqa: PLC0415 - not needed by tests of the edge

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)

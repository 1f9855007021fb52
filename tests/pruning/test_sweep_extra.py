"""Without Optuna a sweep says what to install."""

import sys

import pytest
import torch
from torch import nn

import flexrel
from flexrel import UsageError


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(UsageError, match=r"pip install 'flexrel\[sweep\]'"):
        flexrel.sweep(nn.Linear(2, 2), calibration=[torch.ones(1, 2)], evaluate=lambda _: 1.0)

"""The trace: which operations ran, on which tensors."""

import torch
from torch import nn

from flexrel.structure.trace import trace
from networks import (
    Several,
    batch,
)
from reading import image


def test_the_trace_names_operations_with_their_library():
    names = [op.name for op in trace(Several(["custom operation"]), batch(image)).operations]

    assert "flexrel_tests.relu" in names
    assert "aten.convolution" in names


def test_the_trace_knows_parameters_inputs_and_outputs():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    inputs = torch.zeros(4, 3)

    traced = trace(model, batch(inputs))

    assert traced.samples == 4
    assert [ref.shape for ref in traced.inputs] == [(4, 3)]
    assert [ref.shape for ref in traced.outputs] == [(4, 2)]
    assert set(traced.parameters.values()) == set(model.state_dict())
    (norm,) = (op for op in traced.operations if "batch_norm" in op.name)
    assert {traced.parameters.get(ref.key) for ref in norm.inputs} == {
        None,  # the linear layer's result
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    }

"""Criteria of others that the benchmarks compare with: what their papers' formulas give."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import published
from flexrel.core.batches import read_batches
from flexrel.criteria import scores_of
from flexrel.relevance import calibrate
from flexrel.structure import analyse, named_tensors


@given(
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_convolution_is_a_linear_layer_of_its_patches(
    groups, kernel, stride, padding, dilation, seed
):
    torch.manual_seed(seed)
    shape = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = nn.Conv2d(2 * groups, 3 * groups, kernel, bias=False, **shape)
    inputs = torch.randn(2, 2 * groups, 6, 7)
    rows = published.rows_of(layer, inputs)  # [groups, rows, inputs of one output]
    weight = layer.weight.flatten(1).unflatten(0, (groups, -1))
    found = (rows @ weight.mT).unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(found, layer(inputs).flatten(2), atol=1e-5, rtol=1e-4)


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows, dtype=torch.float32)
    return layer


def test_wanda_weighs_a_weight_by_the_norm_of_its_input():
    model = nn.Sequential(linear([3.0, 2.0, 1.0], [5.0, 1.0, 0.5]), linear([1.0, 1.0]))
    inputs = [torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[0.0, 4.0, 4.0]])]  # norms 1, 4, 5
    published.wanda_(model, inputs, 1 / 3)  # 3, 8, 5 and 5, 4, 2.5
    assert model[0].weight.tolist() == [[0.0, 2.0, 0.0], [5.0, 0.0, 0.0]]
    assert model[1].weight.tolist() == [[1.0, 1.0]]  # what makes the outputs stays


def test_lamp_weighs_a_weight_by_its_share_of_those_no_smaller():
    # squares 9, 16 and 1, 4: shares 9/25, 1 and 1/5, 1
    model = nn.Sequential(linear([3.0, -4.0]), nn.ReLU(), linear([1.0], [2.0]))
    published.lamp_(model, None, 3 / 4)
    assert model[0].weight.tolist() == [[3.0, -4.0]]
    assert model[2].weight.tolist() == [[0.0], [2.0]]
    published.lamp_(model, None, 1 / 2)
    assert model[0].weight.tolist() == [[0.0, -4.0]]


def test_sparsegpt_makes_up_for_a_weight_by_least_squares():
    torch.manual_seed(0)
    inputs = torch.randn(50, 4) @ torch.randn(4, 4)
    weight = torch.tensor([[0.01, 1.0, -2.0, 3.0]])  # the first goes; all others come after it
    model = nn.Sequential(linear(weight[0].tolist()), linear([1.0]))
    published.sparsegpt_(model, [inputs], 3 / 4)
    x = inputs.double().numpy()
    damped = x.T @ x
    damped += published.DAMPING * np.diag(damped).mean() * np.eye(4)
    # minimise (w - w0)' H (w - w0) with the first of w at zero
    w0 = weight[0].double().numpy()
    wanted = w0[1:] + np.linalg.solve(damped[1:, 1:], damped[1:, 0]) * w0[0]
    assert model[0].weight[0, 0] == 0
    np.testing.assert_allclose(model[0].weight[0, 1:].detach().numpy(), wanted, rtol=1e-5)


def test_sparsegpt_makes_up_in_later_blocks_too(monkeypatch):
    monkeypatch.setattr(published, "BLOCK", 3)
    torch.manual_seed(0)
    inputs = torch.randn(50, 6) @ (torch.eye(6) + 0.3 * torch.randn(6, 6))
    weight = [0.01, 1.0, -2.0, 0.01, 3.0, 1.5]  # the first goes in each block
    model = nn.Sequential(linear(weight), linear([1.0]))
    published.sparsegpt_(model, [inputs], 2 / 3)
    x = inputs.double().numpy()
    damped = x.T @ x
    damped += published.DAMPING * np.diag(damped).mean() * np.eye(6)
    wanted = np.array(weight)
    for gone in (0, 3):  # what comes after it makes up for it, what came before stays
        after = slice(gone + 1, None)
        wanted[after] += np.linalg.solve(damped[after, after], damped[after, gone]) * wanted[gone]
        wanted[gone] = 0
    np.testing.assert_allclose(model[0].weight[0].detach().numpy(), wanted, rtol=1e-5)


def test_sparsegpt_takes_what_no_input_reaches_and_keeps_the_rest():
    model = nn.Sequential(linear([1.0, 2.0, 3.0]), linear([1.0]))
    published.sparsegpt_(model, [torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])], 1.0)
    torch.testing.assert_close(model[0].weight.detach(), torch.tensor([[1.0, 0.0, 3.0]]))


@pytest.mark.parametrize("change_", [published.wanda_, published.sparsegpt_, published.lamp_])
def test_all_weights_stay_where_all_are_kept(change_):
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 2))
    before = [p.detach().clone() for p in model.parameters()]
    inputs = torch.randn(8, 3, 4, 4)
    wanted = model(inputs)
    change_(model, [inputs], 1.0)
    gone = sum(int((p == 0).sum()) for p in model.parameters())
    assert gone <= (change_ is published.lamp_)  # whose share of 1 - 0 still has a least one
    if not gone:
        torch.testing.assert_close(model(inputs), wanted, atol=1e-5, rtol=1e-4)
    assert len(before) == len(list(model.parameters()))


def test_pbx_adds_relevance_up_without_letting_samples_cancel():
    model = nn.Sequential(linear([1.0, 0.0], [0.0, 1.0]), linear([1.0, 1.0]))
    inputs = [torch.tensor([[3.0, -2.0], [-1.0, 2.0]])]  # both give 1; the sums are 2 and 0
    example = next(read_batches(inputs, model))
    graph = analyse(model, example, "channel")
    statistics = calibrate(model, inputs)
    scores = scores_of(published.Explained(), graph, named_tensors(model), statistics)
    (found,) = (scores[group.name] for group in graph.groups)
    assert (found[0] / found[1]).item() == pytest.approx(1)


def test_padding_is_no_input():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.tensor([[9.0], [1.0], [2.0]]))
            self.inner, self.head = linear([1.0]), linear([1.0])

        def forward(self, ids):
            return self.head(self.inner(self.table(ids)))

    model = Words()
    squares = published.squares_of(
        model, published.inner_layers(model), [torch.tensor([[1, 2, 0]])]
    )
    assert {name: found.item() for name, found in squares.items()} == {"inner": 5.0}

"""Weights that are used in several places, or in ways that can't be followed."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import ModelError
from networks import (
    Mixer,
)
from reading import check_that_every_layer_is_accounted_for, members_of, named_groups, read, reasons


def test_a_tied_embedding_is_cut_with_what_its_other_use_reads():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 4)
            self.decoder = nn.Linear(4, 7, bias=False)
            self.decoder.weight = self.embedding.weight

        def forward(self, tokens):
            return self.decoder(self.outer(self.inner(self.embedding(tokens)).relu()))

    graph = read(Language(), torch.zeros(2, dtype=torch.long))

    assert {name: group.units for name, group in named_groups(graph).items()} == {
        "embedding": 4,  # and what the layer behind makes, which the decoder reads
        "inner": 5,
    }
    check_that_every_layer_is_accounted_for(Language(), graph)


def test_a_weight_used_in_a_formula_is_cut_with_what_it_is_used_for_later():
    model = Mixer(
        nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((3, 5), (5, 4), (5, 4), (4, 4), (4, 2))]),
        lambda f, x: (
            functional.conv2d(f[1](y := f[0](x)), f[3].weight.tanh()).mean() * f[4](f[3](f[2](y)))
        ),
    )

    graph = read(model)

    assert set(named_groups(graph)) == {"layer.0", "layer.1"}
    assert ("layer.3.weight", 1) in members_of(named_groups(graph)["layer.1"])


def test_tied_layers_are_one_group_with_both_uses_cut_and_counted():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)
    )
    model[2].weight = model[4].weight  # of the second and third, reads and makes one space

    graph = read(model, torch.zeros(2, 4))

    uses = [times for name, times in graph.uses if name == "2.weight"]
    assert uses == [1, 1]
    check_that_every_layer_is_accounted_for(model, graph)
    assert named_groups(graph)["0"].units == 4
    cut = {(part.tensor, part.axis) for part in named_groups(graph)["0"].members}
    assert {("0.weight", 0), ("2.weight", 0), ("2.weight", 1), ("5.weight", 1)} <= cut


def test_a_module_used_twice_counts_twice_and_is_cut_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), shared, nn.ReLU(), shared, nn.Linear(4, 2))

    graph = read(model, torch.zeros(2, 3))

    assert [times for name, times in graph.uses if name == "1.weight"] == [1, 1]
    assert list(named_groups(graph)) == ["0"]
    check_that_every_layer_is_accounted_for(model, graph)


def test_a_norm_shared_by_two_layers_joins_them_into_one_group():
    shared = nn.BatchNorm1d(4)
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4), shared, nn.Linear(4, 2), nn.Linear(4, 2)]),
        lambda f, x: f[3](f[2](f[0](x))) + f[4](f[2](f[1](x))),
    )

    (group,) = read(model, torch.zeros(2, 3)).groups

    assert {part.tensor for part in group.members if part.role == "producer"} == {
        "layer.0.weight",
        "layer.1.weight",
    }


def test_a_norm_shared_with_a_layer_that_is_protected_protects_both():
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)]),
        lambda f, x: f[3](f[2](f[0](x))) + f[3](f[2](f[1](x).cumsum(1))),
    )

    with pytest.raises(
        ModelError, match=r"layer\.0: torch\.cumsum \(.*test_sharing.py:\d+\) works along it"
    ):
        read(model, torch.zeros(2, 3))


def test_samples_that_a_layer_makes_are_followed_through_a_convolution():
    model = Mixer(
        nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 2), nn.Conv1d(3, 2, 1)]),
        lambda f, x: (f[3]((y := f[0](x.t())).t()[:, :, None]), f[2](f[1](y))),
    )

    graph = read(model, torch.zeros(2, 3))  # 2 samples become 5, as many as come out

    assert set(named_groups(graph)) == {"layer.1"}
    assert reasons(graph)["layer.0"] == "it is the network's output"


def test_a_layer_that_is_never_called_is_protected_once_at_both_granularities():
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(5, 5)]),
        lambda f, x: f[1](f[0](x)),
    )

    for granularity in ("channel", "element"):
        graph = read(model, torch.zeros(2, 3), granularity)

        assert reasons(graph)["layer.2"] == "it is never called on the example input"
        assert "layer.2.weight" not in reasons(graph)


def test_a_layer_used_in_a_way_that_is_not_followed_says_so():
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)]),
        lambda f, x: f[1](f[0](x)) * f[2].weight.cumsum(0).sum(),
    )

    graph = read(model, torch.zeros(2, 3))

    assert re.fullmatch(
        r"torch\.cumsum \(test_sharing.py:\d+\) works along it", reasons(graph)["layer.2"]
    )


def test_a_computed_weight_says_so():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)
    )

    graph = read(model, torch.zeros(2, 3), "element")

    assert set(named_groups(graph)) == {"0", "2"}
    assert reasons(graph)["1"] == "its weight is computed from other parameters"

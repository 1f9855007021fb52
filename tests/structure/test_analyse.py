"""Elements, layers that are kept on request, and networks that are refused."""

import pytest
import torch
from torch import nn

from flexrel import ModelError, UsageError
from flexrel.structure import analyse
from networks import (
    Call,
    Mixer,
    batch,
    bits,
    same_bits,
    unchecked,
)
from reading import chain, image, named_groups, read, reasons

# --- elements -----------------------------------------------------------------------------------


def test_elements_of_all_layers_that_are_called_can_go_and_nothing_else():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(144, 2),
    )
    model.extra = nn.Parameter(torch.zeros(3, 3))

    graph = read(model, granularity="element")

    assert {s.name: s.shape for s in graph.groups} == {
        "0": (4, 3, 3, 3),
        "2": (4, 2, 1, 1),
        "4": (2, 144),
    }
    assert graph.units == 4 * 27 + 4 * 2 + 288
    assert reasons(graph) == {"extra": "no product multiplies by its entries"}


def test_a_model_that_is_one_linear_layer():
    model = nn.Linear(3, 2)

    assert [group.name for group in read(model, torch.zeros(2, 3), "element").groups] == [""]
    with pytest.raises(ModelError, match="the model itself: it is the network's output") as caught:
        read(model, torch.zeros(2, 3))
    assert caught.value.exit_code == 4


# --- keep ---------------------------------------------------------------------------------------


def four():
    """A pair of layers with a depthwise one between, and one more pair."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)
    )


def test_kept_layers_are_protected_on_request():
    graph = read(four(), keep=["2"])

    assert list(named_groups(graph)) == ["0"]
    assert reasons(graph)["2"] == "kept on request"


def test_keeping_a_layer_keeps_all_that_goes_with_it():
    graph = read(four(), keep=["1"])  # the depthwise one, which has no group of its own

    assert list(named_groups(graph)) == ["2"]
    assert reasons(graph)["1"] == "kept on request"
    assert reasons(graph)["0"] == "it goes together with 1, which is kept on request"


def test_keeping_a_tied_layer_by_its_second_name_keeps_its_elements():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight

    graph = read(model, torch.zeros(2, 3), "element", keep=["1"])

    assert list(named_groups(graph)) == ["2"]
    assert reasons(graph)["1"] == "kept on request"


def test_an_unknown_name_to_keep_is_refused_with_names_that_are_close():
    model = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 4, 1), "conv_out": nn.Conv2d(4, 2, 1), "classify": nn.Linear(2, 2)}
    )

    with pytest.raises(UsageError, match=r"no layer 'conv_inn'.*did you mean conv_in") as caught:
        read(model, keep=["conv_inn"])

    assert caught.value.exit_code == 2
    assert "classify" not in str(caught.value)


def test_keeping_everything_leaves_nothing_to_prune():
    with pytest.raises(ModelError, match=r"can be pruned by channel.*kept on request") as caught:
        read(four(), keep=["0", "2"])

    assert caught.value.exit_code == 4


# --- models that are refused --------------------------------------------------------------------


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="no layer of the network can be pruned by element"):
        read(nn.Sequential(nn.ReLU()), granularity="element")


def test_layers_of_which_only_one_can_be_cut_are_not_all_offered():
    """Python that knows the sum of two sizes runs with either cut, and not with both."""

    def forward(f, x):
        y = f[3](f[2](f[1](f[0](x))))
        return y if f[0].out_channels + f[2].out_channels >= 7 else y[:, :1]

    model = Mixer(
        nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((3, 4), (4, 3), (3, 5), (5, 2))]), forward
    )

    graph = read(model)

    assert set(named_groups(graph)) == {"layer.0", "layer.1"}
    assert "was tried and failed" in reasons(graph)["layer.2"]


def test_an_unknown_granularity_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match="'filter' is not known; there are: element, channel"):
        unchecked(analyse)(four(), batch(image), "filter")


def test_a_model_that_does_not_run_is_refused_and_left_as_it_was():
    model = four().train()
    before = bits(model)

    with pytest.raises(ModelError, match=r"does not run on batch 0 .*\(2, 5, 8, 8\)"):
        read(model, torch.zeros(2, 5, 8, 8))

    assert same_bits(bits(model), before)


def test_a_model_that_draws_random_numbers_does_not_disturb_the_callers():
    model = chain(Call(lambda x: x * (1 + 0 * torch.rand(()))))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    read(model)

    assert torch.equal(torch.rand(4), expected)

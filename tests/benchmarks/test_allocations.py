"""Other ways to share a cut out, and swaps inside groups, against slow twins."""

import itertools
from types import SimpleNamespace

import pytest
import torch

import search
import swaps


def refit_error(weight, moments, gradients, kept):
    """Return the squared error of outputs, weighed by their gradients, after a refit."""
    off = weight.clone()
    off[:, kept] -= torch.linalg.solve(moments[kept][:, kept], moments[kept] @ weight.T).T
    return float((gradients * (off @ moments @ off.T)).sum())


def test_swaps_lower_the_error_of_the_refit_until_no_swap_does():
    draw = torch.Generator().manual_seed(1)
    units, kernel = 5, 2
    mixed = torch.randn(units * kernel + 1, 40, generator=draw, dtype=torch.float64)
    weight = torch.randn(3, units * kernel + 1, generator=draw, dtype=torch.float64)
    moments, sides = mixed @ mixed.T / 40, torch.randn(3, 3, generator=draw, dtype=torch.float64)
    gradients = sides @ sides.T
    factors = SimpleNamespace(outputs=gradients[None], covariance=moments[None].clone)
    index = torch.arange(units * kernel).view(units, kernel)  # the last input is of no unit
    member = SimpleNamespace(axis=1, index=index)
    ridged = moments + torch.eye(len(moments)) * swaps.RIDGE * moments.diagonal().mean()

    def error(kept):
        inputs = torch.cat([kept.repeat_interleave(kernel), torch.ones(1, dtype=torch.bool)])
        return refit_error(weight, ridged, gradients, inputs)

    choices = [
        torch.tensor([at in some for at in range(units)])
        for some in itertools.combinations(range(units), 3)
    ]
    worst = max(choices, key=error)
    reader = swaps.Reader(member, weight, factors, worst)
    steps = reader.steps()
    for unit in range(units):
        other = worst.clone()
        other[unit] = ~other[unit]
        assert float(steps[unit]) == pytest.approx(abs(error(other) - error(worst)))

    kept, count, before, after = swaps.swapped(SimpleNamespace(units=units), worst, [reader])

    assert count > 0
    assert kept.sum() == 3
    assert (before, after) == (pytest.approx(error(worst)), pytest.approx(error(kept)))
    assert after < before


def test_groups_keep_as_their_density_says_and_the_same_share_if_that_is_the_same():
    same = [search.evenly(units, 1.0) for units in (4, 8)]
    assert kept_of(same, 6) == [2, 4]
    denser = [search.evenly(units, density) for units, density in ((4, 2.0), (8, 1.0))]
    assert kept_of(denser, 6) == [3, 3]  # 3/4 and 3/8
    assert kept_of(denser, 8) == [4, 4]  # no more than there are


def kept_of(scores, count):
    """Return how many of each group are among the `count` best of all."""
    least = torch.cat(scores).sort(descending=True).values[count - 1]
    return [int((values >= least).sum()) for values in scores]


def test_the_density_of_a_group_is_that_of_its_layers_weights():
    tensors = {"a": torch.zeros(8, 4, 3, 3), "a.bias": torch.zeros(8), "b": torch.zeros(10, 8)}
    members = tuple(SimpleNamespace(tensor=name) for name in tensors)
    graph = SimpleNamespace(groups=[SimpleNamespace(name="a", members=members)])
    found = search.densities(SimpleNamespace(graph=graph, tensors=tensors))
    assert found == {"a": (8 + 4 + 3 + 3 + 10 + 8) / (8 * 4 * 9 + 80)}

"""The most activations alive at once are those of a pass that frees each after its last reader."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flexrel
from families import FAMILIES, family
from flexrel import BudgetError, Magnitude, PeakMemory, Plan, UsageError
from flexrel.core.graph import PruningGraph
from flexrel.structure import activations_of, analyse, apply
from graphs import TOKENS, Tokens, image_networks, sentences
from networks import batch, images, random_, random_plan

FLOAT = 4  # bytes


def tensors_in(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Steps(TorchDispatchMode):
    """Writes down which storages each operation reads and makes, and keeps them all."""

    def __init__(self):
        super().__init__()
        self.steps, self.kept = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        touched = tensors_in((args, kwargs, made))
        self.kept += touched
        self.steps.append({t.untyped_storage().data_ptr(): t.untyped_storage() for t in touched})
        return made


def peak_slowly(model, inputs):
    """For each operation add up, one by one, what exists already and is touched then or later."""
    one = inputs[:1].clone()
    weights = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    weights |= {t.untyped_storage().data_ptr() for t in model.buffers()}
    model.eval()
    with torch.no_grad(), Steps() as run:
        result = model(one)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors_in((one, result))}
    given = one.untyped_storage().data_ptr()
    most = 0
    for at in range(len(run.steps)):
        so_far = {given, *(s for step in run.steps[: at + 1] for s in step)}
        wanted = {**held, **{k: v for step in run.steps[at:] for k, v in step.items()}}
        alive = (wanted[s].nbytes() for s in so_far - weights if s in wanted)
        most = max(most, sum(alive))
    return most


def peak(model, inputs, plan=None):
    graph = plan.graph if plan else PruningGraph("channel", (), (), {}, ())
    return activations_of(model, batch(inputs), graph).peak(plan.masks if plan else {})


def test_of_a_chain_it_is_the_two_largest_neighbours_and_the_input():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Flatten())

    # input 3, then 3 + 8, then the input, which its caller holds, + 8 + 4 channels of 6 by 6
    assert peak(model, torch.ones(2, 3, 6, 6)) == (3 + 8 + 4) * 36 * FLOAT


def test_a_shortcut_is_held_until_it_is_added():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 100), nn.Linear(100, 5)

        def forward(self, x):
            y = self.a(x)
            return y + self.c(self.b(y))

    assert peak(Shortcut(), torch.ones(2, 4)) == (4 + 5 + 100 + 5) * FLOAT


def test_what_is_written_in_place_or_viewed_takes_nothing_more():
    plain = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 2))
    more = nn.Sequential(
        nn.Linear(4, 50), nn.ReLU(inplace=True), nn.Unflatten(1, (5, 10)), nn.Flatten(), plain[1]
    )

    assert peak(more, torch.ones(2, 4)) == peak(plain, torch.ones(2, 4)) == (4 + 50 + 2) * FLOAT


def test_weights_and_their_number_make_no_difference():
    small = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 2))
    wide = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 2))
    wide.register_buffer("table", torch.ones(10_000))

    assert peak(wide, torch.ones(2, 4)) == peak(small, torch.ones(2, 4))


def test_values_of_two_bytes_take_half():
    model = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 2))
    of_four = peak(model, torch.ones(2, 4))

    assert peak(model.bfloat16(), torch.ones(2, 4, dtype=torch.bfloat16)) == of_four / 2


class Freed(TorchDispatchMode):
    """Asks after each operation which of the tensors that were made still exist."""

    def __init__(self, given):
        super().__init__()
        self.alive, self.most = [weakref.ref(given)], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.alive += [weakref.ref(tensor) for tensor in tensors_in(made)]
        there = [tensor for ref in self.alive if (tensor := ref()) is not None]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in there}
        self.most = max(self.most, sum(sizes.values()))
        return made


def test_it_is_what_a_real_pass_holds_where_python_frees_what_is_read():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    one = torch.ones(1, 3, 16, 16)

    with torch.no_grad(), Freed(one) as run:
        model.eval()(one)

    assert peak(model, one) == run.most


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_of_every_family_it_is_the_slow_count_before_and_after_a_cut(name):
    model, inputs = family(name), images(4).float()
    plan = random_plan(analyse(model, batch(inputs), "channel"), 3)

    assert peak(model, inputs) == peak_slowly(model, inputs)
    assert peak(model, inputs, plan) == peak_slowly(apply(model, plan), inputs)


@pytest.mark.parametrize("name", sorted(TOKENS.keys() - {"mixed over time", "grouped, expanded"}))
def test_of_networks_of_tokens_it_is_the_slow_count_after_a_cut(name):
    model = random_(Tokens(["feed-forward", name], norm=True).double())
    plan = random_plan(analyse(model, batch(sentences()), "channel"), 1)

    assert peak(model, sentences(), plan) == peak_slowly(apply(model, plan), sentences())


def test_what_the_dense_network_copies_counts_as_a_copy_though_the_cut_one_makes_none():
    """Heads of one group alone are expanded without a copy."""
    model = random_(Tokens(["grouped, expanded"]).double())
    graph = analyse(model, batch(sentences()), "channel")
    masks = {group.name: torch.arange(group.units) < 1 for group in graph.groups}
    plan = Plan(graph, masks)

    assert peak(model, sentences()) == peak_slowly(model, sentences())
    assert peak(model, sentences(), plan) >= peak_slowly(apply(model, plan), sentences())


@settings(max_examples=8, deadline=None)
@given(model=image_networks(), seed=st.integers(0, 9))
def test_of_random_networks_of_images_no_cut_takes_more_than_is_counted(model, seed):
    inputs = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    plan = random_plan(analyse(model, batch(inputs), "channel"), seed)

    assert peak(model, inputs, plan) >= peak_slowly(apply(model, plan), inputs)
    assert peak(model, inputs) == peak_slowly(model, inputs)


def pruned(*budgets, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 9, 10),
    )
    data = [torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    options = {"criterion": Magnitude(), **options}
    return model, data[0], flexrel.prune(model, calibration=data, budgets=budgets, **options)


@pytest.mark.parametrize("budget", ["memory=50%", PeakMemory(0.5), PeakMemory("50%")])
def test_a_network_is_pruned_to_half_of_its_memory(budget):
    model, inputs, result = pruned(budget)

    dense, cut = peak_slowly(model, inputs), peak_slowly(result.model, inputs)
    assert 0.45 * dense < cut <= dense // 2
    told = result.as_json()
    assert told["requested"]["memory_bytes"] == dense // 2
    assert told["achieved"]["memory_bytes"] == cut
    assert told["achieved"]["memory_bytes_dense"] == dense
    assert "bytes of activations" in result.report()


def test_units_that_the_peak_is_made_of_go_first():
    _, _, by_memory = pruned("memory=70%")
    _, _, by_macs = pruned("macs=70%")

    wide, narrow = (result.model[0].out_channels / 16 for result in (by_memory, by_macs))
    assert wide < narrow


def test_less_memory_than_the_input_takes_is_refused_with_the_least_there_is():
    with pytest.raises(
        BudgetError, match=r"at most 100 bytes of memory, but the closest"
    ) as caught:
        pruned(PeakMemory(100))

    assert caught.value.closest > 3 * 64 * FLOAT


def test_blocks_that_go_whole_are_not_counted_and_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.branch(x)

    model = nn.Sequential(nn.Linear(4, 8), *(Block() for _ in range(3)), nn.Linear(8, 2))
    with pytest.raises(UsageError, match="memory takes granularity 'channel' or 'head'"):
        flexrel.prune(
            model,
            calibration=[torch.rand(8, 4)],
            budgets=["memory=90%"],
            criterion=Magnitude(),
            granularity="depth",
        )


def test_zeros_save_no_memory_and_are_refused_with_advice():
    with pytest.raises(BudgetError, match="Zeros save no activations"):
        pruned("memory=50%", granularity="element")


@pytest.mark.parametrize("amount", ["2 parsecs", "", 0, 1.5, "0 MB", "2 Mb"])
def test_an_amount_that_means_nothing_is_refused_in_a_line(amount):
    with pytest.raises(UsageError, match="memory budget is") as caught:
        PeakMemory(amount)

    assert repr(amount) in str(caught.value)


@pytest.mark.parametrize(
    ("amount", "expected"), [("2 MB", 2_000_000), ("2MB", 2_000_000), (700, 700), ("25%", 250)]
)
def test_an_amount_is_read_as_written(amount, expected):
    assert PeakMemory(amount).limit(1000) == expected

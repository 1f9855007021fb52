"""The repair as `prune` calls it: never worse, and what it left alone is said."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from families import FAMILIES, family
from flexrel import ClosedForm, FineTune, Magnitude, Sparsity, UsageError
from flexrel.pruning.request import recoveries
from flexrel.repair import reconstruct_
from flexrel.structure import analyse, apply
from networks import batch, bits, random_, random_plan, same_bits
from repairs import mlp, normal, plan_of


@pytest.mark.parametrize("name", FAMILIES)
def test_repair_never_makes_a_network_worse(name):
    result = flexrel.prune(
        family(name),
        calibration=[normal(40, 3, 8, 8), normal(9, 3, 8, 8, seed=1)],
        budgets=[Sparsity(0.4)],
        criterion=Magnitude(),
    )

    [step] = result.recovery
    assert step.name == "closed-form"
    assert step.kept == (step.after < step.before)
    assert result.achieved.divergence == pytest.approx(min(step.before, step.after))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.encode = nn.Linear(6, 9), nn.Linear(9, 9, bias=False)
        self.decode = nn.Linear(9, 9)
        self.decode.weight = self.encode.weight
        self.last = nn.Linear(9, 3)

    def forward(self, x):
        x = functional.relu(self.first(x))
        return self.last(self.decode(functional.relu(self.encode(x))))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = functional.relu(self.first(x))
        return self.last(functional.relu(self.again(functional.relu(self.again(x)))))


class Looked(nn.Module):
    """The weight of a layer is read by something else too."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = self.middle(functional.relu(self.first(x)))
        return self.last(x) + self.middle.weight.square().mean()


@pytest.mark.parametrize(
    ("kind", "layer", "why"),
    [
        (Tied, "encode", "2 times in one pass"),
        (Reused, "again", "2 times in one pass"),
        (Looked, "middle", "used for something else too"),
    ],
)
def test_weights_of_several_uses_are_left_alone_and_the_reason_is_given(kind, layer, why):
    model, inputs = random_(kind()).eval(), normal(200, 6)
    graph = analyse(model, batch(inputs[:2]), "element")
    plan = random_plan(graph, 0)
    cut = apply(model, plan)
    network = copy.deepcopy(cut)

    made, refused = reconstruct_(network, model, plan, [inputs])

    assert why in refused[layer]
    assert torch.equal(
        network.get_parameter(f"{layer}.weight"), cut.get_parameter(f"{layer}.weight")
    )
    assert layer not in [repair.layer for repair in made]
    assert any(repair.changed for repair in made)
    notes = ClosedForm()(cut, model, plan, [inputs]).notes
    assert any(note.startswith(f"{layer}: not repaired") and why in note for note in notes)


def test_transposed_convolutions_are_left_alone_and_others_repaired():
    model, inputs = family("transposed"), normal(60, 3, 8, 8)
    plan = random_plan(analyse(model, batch(inputs[:2]), "channel"), 1)
    cut = apply(model, plan)

    made = ClosedForm()(cut, model, plan, [inputs])

    for name in ("up", "grouped"):
        assert f"{name}: not repaired, it is a transposed convolution" in made.notes
        assert torch.equal(
            made.model.get_parameter(f"{name}.weight"), cut.get_parameter(f"{name}.weight")
        )
    assert not torch.equal(made.model.last.weight, cut.last.weight)


# --- what is asked for, and said ------------------------------------------------------------------


def test_few_samples_are_said_and_how_many_rows_are_wanted():
    model, inputs = mlp(), normal(6, 6)
    plan = plan_of(model, inputs[:2], {"0": [3]})
    cut = apply(model, plan)

    few = ClosedForm()(cut, model, plan, [inputs]).notes
    many = ClosedForm()(cut, model, plan, [normal(200, 6)]).notes

    said = "2: fitted to 5 rows, fewer than its 7 inputs; more calibration data would help"
    assert said in few  # of 8 inputs one is gone; of 6 samples, one is held out
    assert not any("fitted to" in note for note in many)


@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 2)])
def test_too_few_samples_to_hold_one_out_are_said(sizes):
    model, inputs = mlp(), normal(sum(sizes), 6)
    plan = plan_of(model, inputs[:1], {"0": [3]})
    cut = apply(model, plan)

    made = ClosedForm()(cut, model, plan, inputs.split(sizes))

    (note,) = made.notes
    assert note == (
        f"nothing refitted: of {sum(sizes)} samples none can be held out to judge a refit by; "
        "pass at least 4"
    )
    assert same_bits((bits(made.model)[0], *bits(cut)[1:]), bits(cut))


def test_no_more_samples_are_read_than_asked_for():
    model, inputs = mlp(), normal(200, 6)
    plan = plan_of(model, inputs[:2], {"0": [3]})
    cut = apply(model, plan)

    some = ClosedForm(samples=50)(cut, model, plan, [inputs[:20], inputs[20:90], inputs[90:]])
    same = ClosedForm()(cut, model, plan, [inputs[:30], inputs[30:50]])

    for one, other in zip(some.model.parameters(), same.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_same_seed_gives_the_same_network_and_the_cut_one_is_not_changed():
    model, inputs = family("residuals"), normal(30, 3, 8, 8)
    plan = random_plan(analyse(model, batch(inputs[:2]), "channel"), 0)
    cut = apply(model, plan)
    before = bits(cut)

    one, other = (ClosedForm(seed=3)(cut, model, plan, [inputs]).model for _ in range(2))

    assert same_bits(bits(cut), before)
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


def test_what_recover_asks_for():
    repair, training = recoveries("finetune:3", 7)
    own = FineTune(2)

    assert recoveries("none", 7) == (None, None)
    assert recoveries("closed-form", 7) == (ClosedForm(seed=7), None)
    assert repair == ClosedForm(seed=7)
    assert isinstance(training, FineTune)
    assert (training.epochs, training.seed) == (3, 7)
    assert recoveries(own, 7) == (ClosedForm(seed=7), own)
    assert recoveries(ClosedForm(samples=5), 7) == (ClosedForm(samples=5), None)


@pytest.mark.parametrize(
    "text", ["", "all", "finetune", "finetune:", "finetune:-1", "None", "finetune:1.5"]
)
def test_what_is_not_known_is_refused_with_what_there_is(text):
    with pytest.raises(UsageError) as refusal:
        recoveries(text, 0)

    said = str(refusal.value)
    assert repr(text) in said
    assert all(name in said for name in ("none", "closed-form", "finetune:EPOCHS"))
    assert "\n" not in said


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_recovery_is_refused_by_its_type():
    with pytest.raises(UsageError, match="recover is a int") as refusal:
        recoveries(3, 0)

    assert "\n" not in str(refusal.value)

"""Networks fixed to a number of samples, and inputs whose first axis is no samples, are pruned."""

import re

import numpy as np
import pytest
import torch
from tests.networks import random_
from torch import nn

import flexrel
from flexrel import FineTune, MACs, Magnitude, Relevance
from flexrel.cli import main
from flexrel.core.batches import read_batches
from flexrel.core.division import divided, fitted_and_judged
from flexrel.core.whole import uncut
from flexrel_edge import session

FIXED = 16


class Views(nn.Module):
    """Sixteen images a call, said in the code."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)).view(FIXED, -1))


class Loops(nn.Module):
    """One sample after the other, as many as there are; a program of it has a fixed number."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 24), nn.Linear(24, 4)

    def forward(self, x):
        return torch.stack([self.head(self.first(x[at]).relu()) for at in range(len(x))])


class Counts(Loops):
    """The same, for sixteen."""

    def forward(self, x):
        return super().forward(torch.stack([x[at] for at in range(FIXED)]))


class Edges(nn.Module):
    """Messages along edges `[2, edges]` between nodes `[nodes, features]`."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x, edges):
        for layer in (self.first, self.second):
            x = layer(x).relu()
            x = x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return self.head(x)


class EdgesFirst(Edges):
    """The same, whose first input are the edges: two rows."""

    def forward(self, edges, x):
        return super().forward(x, edges)


class Steps(nn.Module):
    """Inputs `[time, samples, features]`, of which the last step answers."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(5, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        state = x.new_zeros(x.shape[1], 24)
        for step in x:
            state = (self.first(step) + self.again(state)).tanh()
        return self.head(state)


def graph(nodes, seed):
    draw = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 3 * nodes), generator=draw)
    return torch.randn(nodes, 5, generator=draw), edges


def graphs(nodes):
    return [graph(count, seed) for seed, count in enumerate(nodes)]


def edges_first(pairs):
    return [((edges, x), torch.zeros(2)) for x, edges in pairs]


def edges_second(pairs):
    return [((x, edges), torch.arange(len(x)) % 3) for x, edges in pairs]


NODES = (40, 31, 52, 40, 27, 33)
NETWORKS = {
    "views": (Views, lambda: list(torch.randn(96, 1, 6, 6).split(FIXED))),
    "counts": (Counts, lambda: list(torch.randn(96, 6).split(FIXED))),
    "edges": (Edges, lambda: edges_second(graphs(NODES))),
    "edges first": (EdgesFirst, lambda: edges_first(graphs(NODES))),
    "one graph": (Edges, lambda: edges_second(graphs((200,)))),
    "time first": (Steps, lambda: [torch.randn(9, 8, 5) for _ in range(6)]),
}


def case(name):
    torch.manual_seed(0)
    kind, data = NETWORKS[name]
    return random_(kind()).eval(), data()


def called(model, batches):
    with torch.no_grad():
        return [model(*batch.args) for batch in read_batches(batches, model)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"criterion": Relevance()},
        {"recover": FineTune(epochs=2)},
    ],
    ids=["default", "relevance", "finetune"],
)
def test_networks_of_whole_batches_are_pruned_with_all_that_helps(name, how):
    model, batches = case(name)
    dense = called(model, batches)

    result = flexrel.prune(model, calibration=batches, budgets=[MACs(0.6)], **how)

    macs, limit = result.achieved.macs, 0.6 * result.dense.macs
    assert macs <= limit
    assert all(map(torch.equal, dense, called(model, batches)))
    found = called(result.model, batches)
    assert [each.shape for each in found] == [each.shape for each in dense]
    assert any("does not run on parts of a batch" in line for line in result.warnings)
    only_one = any("only one such batch" in line for line in result.warnings)
    assert only_one is (name == "one graph")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_cut_of_them_computes_what_zeroed_units_would(name):
    model, batches = case(name)

    result = flexrel.prune(
        model, calibration=batches, budgets=[MACs(0.6)], criterion=Magnitude(), recover="none"
    )

    expected = type(model)()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for group in result.plan.graph.groups:
        for member in group.members:
            if member.reads:
                axis = state[member.tensor].movedim(member.axis, 0)
                axis[member.index[~result.plan.masks[group.name]].flatten()] = 0
    expected.load_state_dict(state)
    for found, wanted in zip(called(result.model, batches), called(expected, batches), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"counts", "time first"}))
def test_repair_brings_whole_batches_closer(name):
    model, batches = case(name)
    request = {"budgets": [MACs(0.6)], "criterion": Magnitude()}

    plain = flexrel.prune(model, calibration=batches, recover="none", **request)
    repaired = flexrel.prune(model, calibration=batches, **request)

    dense, errors = called(model, batches), []
    for result in (plain, repaired):
        pairs = zip(called(result.model, batches), dense, strict=True)
        errors.append(sum(float((one - two).square().sum()) for one, two in pairs))
    assert repaired.recovery[0].kept
    assert errors[1] < 0.9 * errors[0]


def test_multiply_adds_of_whole_batches_are_those_of_one_call():
    model, batches = case("views")
    result = flexrel.prune(model, calibration=batches, budgets=[MACs(0.6)])
    assert result.dense.macs == FIXED * (16 * 12 * 9 + 12 * 4)

    model, batches = case("edges")
    result = flexrel.prune(model, calibration=batches, budgets=[MACs(0.6)])
    assert result.dense.macs == 40 * (5 * 24 + 24 * 24 + 24 * 3)
    assert any("one call" in line for line in result.warnings)


def test_a_batch_that_is_too_short_for_the_network_is_left_out_and_named():
    model, batches = case("views")

    result = flexrel.prune(
        model, calibration=[*batches, torch.randn(5, 1, 6, 6)], budgets=[MACs(0.6)]
    )

    (line,) = (line for line in result.warnings if "left out" in line)
    assert "batch 6 of inputs [(5, 1, 6, 6)]" in line
    assert result.calibration_samples == 96


def test_a_network_that_runs_on_no_whole_batch_is_refused_with_the_shapes_given():
    with pytest.raises(flexrel.ModelError, match=re.escape("(inputs of shape (32, 1, 6, 6))")):
        flexrel.prune(Views(), calibration=[torch.randn(32, 1, 6, 6)], budgets=[MACs(0.6)])


@pytest.mark.parametrize("held", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 40])
def test_whole_batches_are_held_out_as_they_came(count, held):
    model = Views()
    batches = uncut(model, [torch.full((FIXED, 1, 6, 6), float(at)) for at in range(count)]).batches

    parts = list(divided(batches, model, held))

    stay = [part.index for part, _ in parts if part is not None]
    out = [part.index for _, part in parts if part is not None]
    assert sorted(stay + out) == list(range(count))
    assert all(part.samples == FIXED for pair in parts for part in pair if part is not None)
    assert stay
    assert len(out) == (0 if count == 1 else max(round(held * count), 1))


def test_the_only_whole_batch_is_fitted_and_judges():
    model = Views()
    batches = uncut(model, [torch.randn(FIXED, 1, 6, 6)]).batches
    fitted, judged = fitted_and_judged(batches, model)
    assert [one.samples for one in (*fitted, *judged)] == [FIXED, FIXED]


@pytest.mark.parametrize("samples", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_that_run_on_any_number_are_not_kept_whole(samples, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 3))
    batches = [torch.randn(samples, 1, 6, 6).to(dtype)]
    assert uncut(model.to(dtype).eval(), batches).batches is batches
    for other in (Siamese(), WithLoss(), Detector()):
        batches = [torch.randn(samples, 5).to(dtype)]
        assert uncut(other.to(dtype).eval(), batches).batches is batches


class Siamese(nn.Linear):
    """Every sample against every other: `[samples, samples]`."""

    def __init__(self):
        super().__init__(5, 7)

    def forward(self, x):
        made = super().forward(x)
        return made @ made.T


class WithLoss(nn.Linear):
    """With a number that is of the whole batch, as mixtures of experts return one."""

    def __init__(self):
        super().__init__(5, 7)

    def forward(self, x):
        made = super().forward(x)
        return made, made.square().mean()


class Detector(nn.Linear):
    """A dict for each sample, of as many rows as it has to say."""

    def __init__(self):
        super().__init__(5, 7)

    def forward(self, x):
        made = super().forward(x)
        return [{"boxes": one[: 1 + int(one[0] > 0)], "scores": one} for one in made]


class OverBatch(nn.Linear):
    """Scaled by what the whole batch is like."""

    def __init__(self):
        super().__init__(5, 7)

    def forward(self, x):
        made = super().forward(x)
        return made / made.std(0)


def test_outputs_that_depend_on_the_other_samples_keep_batches_whole():
    (line, *_) = uncut(OverBatch(), [torch.randn(16, 5)]).warnings
    assert "2 of 16 samples: other outputs for these than in the whole batch" in line


@pytest.mark.parametrize("recover", ["closed-form", "finetune:2"])
def test_a_program_of_a_fixed_number_is_repaired_on_whole_batches(recover):
    torch.manual_seed(0)
    model = random_(Loops()).eval()
    batches = [*torch.randn(96, 6).split(FIXED), torch.randn(5, 6)]

    result = flexrel.prune(
        model,
        calibration=batches,
        budgets=[MACs(0.6)],
        recover=recover,
        options=flexrel.PruneOptions(form="exported"),
    )

    assert result.form == "exported"
    assert result.samples_a_call == FIXED
    assert result.achieved.macs <= 0.6 * (6 * 24 + 24 * 4)
    assert any("batch 6 of inputs [(5, 6)]" in line for line in result.warnings)
    assert result.model(batches[0]).shape == (FIXED, 4)


@pytest.mark.parametrize("size", [10, 32])
def test_evaluation_batches_that_a_program_does_not_take_are_refused_before_the_work(size):
    model = random_(Loops()).eval()
    x = torch.randn(96, 6)
    other = [(part, torch.zeros(len(part))) for part in x.split(size)]

    with pytest.raises(flexrel.UsageError, match=rf"evaluation batch 0 has \[\({size}, 6\)\]"):
        flexrel.prune(
            model,
            calibration=x.split(FIXED),
            budgets=[MACs(0.6)],
            evaluate=flexrel.Accuracy(other),
            options=flexrel.PruneOptions(form="exported"),
        )


MODEL = """
import torch
from tests.pruning.test_whole_batches import case

def net():
    return case("{name}")[0]

def data():
    return case("{name}")[1]
"""


@pytest.mark.parametrize("name", ["views", "edges first"])
def test_the_command_line_prunes_networks_of_whole_batches(name, tmp_path, capsys):
    file = tmp_path / "net.py"
    file.write_text(MODEL.format(name=name))

    data = ["--calibration", f"{file}:data", "--budget=macs=60%"]
    code = main(["prune", f"{file}:net", *data, "--out", str(tmp_path / "out"), "--export=graph"])

    said = capsys.readouterr().err
    assert code == 0, said
    assert "does not run on parts of a batch" in said
    model, batches = case(name)
    runs = session(tmp_path / "out" / "model.flexrel")
    (batch,) = read_batches(batches[:1], model)
    given = {one.name: t.numpy() for one, t in zip(runs.get_inputs(), batch.args, strict=True)}
    (made,) = runs.run(None, given)
    assert made.shape == tuple(called(model, batches)[0].shape)
    assert np.isfinite(made).all()


def labelled(model, count):
    x = torch.randn(count * FIXED, 6, generator=torch.Generator().manual_seed(1)).split(FIXED)
    with torch.no_grad():
        return [(part, model(part).argmax(1)) for part in x]


@pytest.mark.parametrize(("kind", "form"), [(Counts, "module"), (Loops, "exported")])
def test_whole_batches_are_set_aside_for_networks_that_run_on_no_part_of_one(kind, form):
    """Of seven batches of 16 the search sees the first, third, fifth and seventh."""
    torch.manual_seed(0)
    model = random_(kind()).eval()

    result = flexrel.prune(
        model,
        calibration=torch.randn(96, 6).split(FIXED),
        evaluate=flexrel.Accuracy(labelled(model, 7)),
        target=flexrel.AccuracyDrop(0.2),
        criterion="magnitude",
        options=flexrel.PruneOptions(form=form),
    )

    assert result.promise is not None
    assert result.promise.aside
    assert (result.samples, result.promise.samples) == (4 * FIXED, 3 * FIXED)


def test_of_the_only_whole_batch_nothing_is_set_aside_and_that_is_said():
    torch.manual_seed(0)
    model = random_(Views()).eval()
    x = torch.randn(FIXED, 1, 6, 6)

    result = flexrel.prune(
        model,
        calibration=[x, x + 1],
        evaluate=flexrel.Accuracy([(x, model(x).argmax(1))]),
        target=flexrel.AccuracyDrop(0.9),
        criterion="magnitude",
    )

    assert result.promise is None
    assert any(
        "there is one batch, and the network does not run on a part" in line
        for line in result.warnings
    )


class Noisy(nn.Module):
    """Adds noise to what it gives, in evaluation mode too."""

    def __init__(self, noise):
        super().__init__()
        self.first, self.head, self.noise = nn.Linear(6, 24), nn.Linear(24, 4), noise

    def forward(self, x):
        x = self.head(self.first(x).relu())
        return x + self.noise * torch.randn_like(x)


def test_outputs_that_are_random_are_told_with_their_spread_and_batches_are_cut_all_the_same():
    torch.manual_seed(0)
    inputs, model = torch.randn(4000, 6), Noisy(0.0)
    with torch.no_grad():
        model.noise = float(model(inputs).std())  # then two calls differ as much as outputs vary
    found = uncut(model, [inputs])

    assert isinstance(found.batches[0], torch.Tensor)  # not marked to stay whole
    (warning,) = found.warnings
    assert "does not give the same twice" in warning
    said = int(re.search(r"differ by (\d+)% of what its outputs vary by", warning)[1])
    assert 90 < said < 110

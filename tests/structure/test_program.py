"""Exported programs: numbers in a network's code are cut with it, and it computes the same."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import ModelError
from flexrel.core import cost
from flexrel.core.batches import read_batches
from flexrel.structure import analyse, apply, exported_program, program_bytes, untrainable, verify
from networks import bits, images, masked, networks, random_, random_plan, same_bits


class FixedView(nn.Module):
    """As in the first tutorials: 4 channels of 4 x 4 pixels are 64 features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(64, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv(x))).view(-1, 64)
        return self.last(functional.relu(self.hidden(x)))


class Pieces(nn.Module):
    """Splits of sizes in the code, one of them ragged, and members from both ends."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 12, 1)
        self.two = nn.Conv2d(12, 10, 1)
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        a, b = torch.split(self.one(x), [8, 4], 1)
        y = self.two(torch.cat([b.relu(), a.tanh()], 1))
        y = torch.cat([y[:, :3].relu(), y[:, 3:-2].tanh(), y[:, -2:]], 1)
        c, d = y.split(7, 1)
        return self.last(torch.cat([d, c.sigmoid()], 1).mean((2, 3)))


class Padded(nn.Module):
    """Zeros, as many as the code says, beside channels, and a number of groups."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.spread = nn.Conv2d(8, 4, 1)
        self.two = nn.Conv2d(8, 5, 1)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        y = functional.conv2d(self.one(x), self.grouped.weight, self.grouped.bias, 1, 1, 1, 4)
        y = self.spread(functional.group_norm(y.relu(), 4))
        y = torch.cat([y, torch.zeros(x.shape[0], 4, 8, 8, dtype=x.dtype)], 1) + self.one(x)
        bias = torch.full((1, 5, 1, 1), 0.5, dtype=x.dtype)
        return self.last((self.two(y) + bias).relu().mean((2, 3)))


class Attended(nn.Module):
    """torch's own attention, which checks and reads its width in code."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.place = nn.Parameter(torch.zeros(1, 5, 12))
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.patches(x).reshape(x.shape[0], 12, 4).permute(0, 2, 1)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.last((x + self.feed(x))[:, 0])


class Windows(nn.Module):
    """As in Swin: windows, a bias a head, and sizes and scale of numbers in the code."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, stride=2)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.project = nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(9, 4))
        grid = torch.arange(4)
        apart = (grid[:, None] // 2 - grid // 2 + 1) * 3 + grid[:, None] % 2 - grid % 2 + 1
        self.register_buffer("index", apart.flatten(), persistent=False)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(self.norm(x), shifts=(-1, -1), dims=(1, 2))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(n * (h // 2) * (w // 2), 4, c)
        qkv = functional.linear(y, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.reshape(y.shape[0], 4, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        attended = (q * (c // 4) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1).contiguous()
        y = (attended + bias).softmax(-1) @ v
        y = self.project(y.transpose(1, 2).reshape(y.shape[0], 4, c))
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.last((x + torch.roll(y, shifts=(1, 1), dims=(1, 2))).mean((1, 2)))


# network -> units of each group that the code's numbers keep a module from losing
FIXED = {
    FixedView: {"conv": 4},
    Pieces: {"one": 12, "two": 10},
    Padded: {"one": 2, "one#2": 2, "two": 5},
    Attended: {"attention.in_proj_weight": 3},
    Windows: {"qkv": 4},
}
every = pytest.mark.parametrize("network", FIXED, ids=lambda network: network.__name__)


def made(network, *args):
    return random_(network(*args), seed=3).double().eval()


def exported(model, inputs=None):
    """Return the program of a model, and what can be cut of it."""
    example = next(read_batches([images() if inputs is None else inputs], model))
    program = exported_program(model, example)
    return program, analyse(model, program.example, "channel", program=program.graph)


def outputs(model, inputs):
    with torch.no_grad():
        return model(inputs)


@every
def test_what_the_code_fixes_is_cut_of_the_program_alone(network):
    model = made(network)
    try:
        within = {
            group.name for group in analyse(model, exported(model)[0].example, "channel").groups
        }
    except ModelError:
        within = set()

    groups = {group.name: group.units for group in exported(model)[1].groups}

    assert FIXED[network].items() <= groups.items(), groups
    assert not any(name in within for name in FIXED[network])


@every
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_program_computes_and_costs_what_the_masked_model_does(network, seed):
    model = made(network)
    before = bits(model)
    program, graph = exported(model)
    plan = random_plan(graph, seed)

    cut = apply(program.graph, plan)

    assert same_bits(bits(model), before)
    inputs = images(5, seed=1)  # other samples, and more of them
    assert torch.allclose(outputs(cut, inputs), outputs(masked(model, plan), inputs), atol=1e-9)
    assert sum(p.numel() for p in cut.parameters()) == cost.parameters(graph, plan.masks)
    verify(program.graph, cut, plan, program.example)
    assert untrainable(cut, program.example) is None


@settings(max_examples=6, derandomize=True)
@given(model=networks(), seed=st.integers(0, 10**6))
def test_a_program_of_a_random_network_is_cut_like_its_module(model, seed):
    try:
        graph = analyse(model, next(read_batches([images()], model)), "channel")
    except ModelError:
        return

    program, found = exported(model)

    assert {(s.name, s.units) for s in graph.groups} <= {(s.name, s.units) for s in found.groups}
    plan = random_plan(found, seed)
    samples = 3 if program.dynamic else program.example.samples  # `len(x)` fixes how many
    cut, inputs = apply(program.graph, plan), images(samples, seed=1)
    assert torch.allclose(outputs(cut, inputs), outputs(masked(model, plan), inputs), atol=1e-9)


def test_numbers_in_the_code_fall_with_what_goes():
    program, graph = exported(made(FixedView))
    keeps = {"conv": [True, False, True, True], "hidden": [True] * 6}
    plan = random_plan(graph, 0)
    plan = type(plan)(graph, {name: torch.tensor(mask) for name, mask in keeps.items()})

    code = apply(program.graph, plan).code

    assert "[-1, 48]" in code  # 3 channels of 16 pixels
    assert "64" not in code
    assert "[-1, 64]" in program.graph.code


def test_the_cut_program_is_saved_and_runs_without_the_class_for_any_number_of_samples():
    program, graph = exported(made(Attended))
    cut = apply(program.graph, random_plan(graph, 1))

    loaded = torch.export.load(io.BytesIO(program_bytes(program, cut))).module()

    assert program.dynamic
    for samples in (1, 7):
        inputs = images(samples, seed=2)
        assert torch.allclose(loaded(inputs), cut(inputs), atol=1e-9)


def test_a_program_of_one_sample_is_for_any_number_too():
    program, _ = exported(made(FixedView), images(1))

    assert program.dynamic


class ByCount(nn.Module):
    """Runs for one number of samples alone."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.hidden(x).view(2, 6).relu())


def test_a_network_fixed_to_its_number_of_samples_stays_so():
    program, graph = exported(made(ByCount), torch.randn(2, 4, dtype=torch.float64))

    assert not program.dynamic
    assert [group.name for group in graph.groups] == ["hidden"]


def test_tied_weights_have_the_name_that_the_model_gives_them_first():
    model = made(FixedView)
    model.other = nn.Linear(6, 6)
    model.hidden.register_parameter("again", model.last.weight)

    program, _ = exported(model)

    names = dict(model.named_parameters())
    assert {n for n, _ in program.graph.named_parameters()} <= names.keys()
    assert program.graph.get_parameter("hidden.again") is names["hidden.again"]


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_control_flow_on_data_is_refused_in_one_line_that_says_where():
    with pytest.raises(ModelError, match=r"can't be exported: .*test_program.py.*line \d+") as told:
        exported(made(Decides), torch.randn(2, 4, dtype=torch.float64))

    assert "\n" not in str(told.value)


# --- what users get -----------------------------------------------------------------------------


def pruned(model, form="auto", macs=0.5, inputs=images, **options):
    data = [inputs(4).float(), inputs(3, seed=1).float()]
    request = {"budgets": [flexrel.MACs(macs)], "criterion": flexrel.Magnitude()} | options
    return flexrel.prune(
        model, calibration=data, options=flexrel.PruneOptions(form=form), **request
    )


@pytest.mark.parametrize(
    ("form", "macs", "became"),
    [("auto", 0.9, "module"), ("auto", 0.5, "exported"), ("exported", 0.9, "exported")],
)
def test_the_program_is_taken_where_the_module_is_not_enough_or_on_request(form, macs, became):
    model = random_(FixedView(), seed=3)

    result = pruned(model, form, macs)

    assert result.form == result.as_json()["form"] == became
    assert (type(result.model) is FixedView) == (became == "module")
    assert result.achieved.macs <= macs * result.dense.macs


def test_the_module_alone_on_request_or_an_error():
    with pytest.raises(flexrel.BudgetError, match="MACs"):
        pruned(random_(FixedView(), seed=3), "module")


def test_relevance_of_the_model_scores_the_program():
    model = random_(Attended(), seed=3)

    result = pruned(model, "exported", criterion=flexrel.Relevance())

    scored = {group.name for group in result.plan.graph.groups}
    assert {"attention.in_proj_weight", "feed.0"} <= scored


def test_a_saved_program_computes_what_the_result_does(tmp_path):
    result = pruned(random_(FixedView(), seed=3))

    result.save(tmp_path / "out")

    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    inputs = images(5, seed=2).float()
    assert torch.allclose(loaded(inputs), outputs(result.model, inputs), atol=1e-6)
    assert "exported program" in (tmp_path / "out" / "report.html").read_text()


def test_weights_of_a_program_are_not_put_into_a_class_whose_code_they_do_not_fit(tmp_path):
    pruned(random_(FixedView(), seed=3)).save(tmp_path / "out")

    with pytest.raises(flexrel.UsageError, match=r"model\.pt2"):
        flexrel.load(tmp_path / "out" / "model.flexrel", into=FixedView())


def test_a_module_has_no_program_beside_it(tmp_path):
    pruned(random_(FixedView(), seed=3), macs=0.9).save(tmp_path / "out")

    assert not (tmp_path / "out" / "model.pt2").exists()
    assert "the module itself" in (tmp_path / "out" / "report.html").read_text()


class Undecided(FixedView):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_where_neither_form_will_do_the_error_says_what_each_lacks():
    with pytest.raises(flexrel.BudgetError, match=r"closest possible.*can't be exported") as told:
        pruned(random_(Undecided(), seed=3))

    assert "\n" not in str(told.value)


def test_an_unknown_form_is_refused(unchecked):
    with pytest.raises(flexrel.UsageError, match="auto, module, exported"):
        pruned(FixedView(), "onnx")

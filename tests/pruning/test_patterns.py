"""Networks pruned by N:M and by blocks: budgets, targets, files, the command line."""

import json
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import flexrel
from flexrel import (
    AccuracyDrop,
    BudgetError,
    Bytes,
    MACs,
    Magnitude,
    PackError,
    Parameters,
    Plan,
    Sparsity,
    UsageError,
    calibrate,
    load,
    pack,
)
from flexrel.cli import main
from flexrel.core import cost
from flexrel.criteria import UnitRanking, scores_of
from flexrel.criteria.ranking import PatternRanking
from flexrel.io import encode
from flexrel.pruning.annotation import unnoted
from flexrel.structure import analyse, apply, named_tensors
from layers import CRITERIA, PICTURES, tower
from networks import batch, bits, random_, random_plan, same_bits
from reference import patterns as slow
from report_page import Page


@pytest.mark.parametrize("criterion", [*CRITERIA, None], ids=lambda c: c.name if c else "auto")
@pytest.mark.parametrize(
    ("granularity", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:5", 3, 5)]
)
def test_without_a_budget_every_layer_has_the_pattern(criterion, granularity, kept, of):
    result = flexrel.prune(
        tower(), calibration=[PICTURES], granularity=granularity, criterion=criterion
    )

    scores = scores_of(
        result.criterion,
        result.plan.graph,
        named_tensors(tower()),
        calibrate(tower(), [PICTURES[: -(len(PICTURES) // 4)]]),  # a quarter is held out
    )
    removed = 0
    assert result.plan.masks.keys() == ({"2", "5", "7"} if of == 4 else {"5", "7"})
    for name, mask in result.plan.masks.items():
        layer = tower().get_submodule(name)
        expected = slow.kept_of_groups(layer, scores[name], kept, of)
        assert set(map(tuple, mask.nonzero().tolist())) == expected
        removed += layer.weight.numel() - len(expected)
    dense = result.dense.parameters
    assert result.achieved.parameters == dense - removed == count_nonzero(result.model)
    assert result.achieved.macs == result.dense.macs
    assert result.achieved.bytes == len(result.packed) < result.dense.bytes
    assert len(unnoted(result.packed, {})) == len(encode(result.model))


def count_nonzero(model):
    return sum(int(p.count_nonzero()) for p in model.parameters())


@pytest.mark.parametrize("granularity", ["2:4", "block:4x4"])
def test_an_exported_program_loses_the_same_weights(granularity):
    options = {"calibration": [PICTURES], "budgets": [Sparsity(0.4)], "granularity": granularity}

    module, program = (
        flexrel.prune(
            tower(), criterion=Magnitude(), options=flexrel.PruneOptions(form=form), **options
        )
        for form in ("module", "exported")
    )

    for name, mask in module.plan.masks.items():
        assert torch.equal(mask, program.plan.masks[name])
    kept, same = module.model.state_dict(), program.model.state_dict()
    assert all(torch.equal(kept[name], same[name]) for name in kept)


def test_kept_layers_stay_whole():
    result = flexrel.prune(tower(), calibration=[PICTURES], granularity="2:4", keep=["2"])

    assert result.plan.masks.keys() == {"5", "7"}
    assert torch.equal(result.model[2].weight, tower()[2].weight)


def test_a_target_gives_the_pattern_to_as_many_layers_as_it_allows():
    model = random_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))))
    inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))

    def evaluate(network):
        return 1 - 0.1 * sum(bool((layer.weight == 0).any()) for layer in network)

    for allowed in range(6):
        result = flexrel.prune(
            model,
            calibration=[inputs],
            evaluate=evaluate,
            target=AccuracyDrop(0.1 * allowed + 0.05),
            granularity="2:4",
            criterion=Magnitude(),
        )

        removal = PatternRanking(
            result.plan.graph,
            scores_of(Magnitude(), result.plan.graph, named_tensors(model), None),
        )
        losses = [
            layer.weight.detach().abs().view(-1, 4).sort(1).values[:, :2].mean().item()
            for layer in model
        ]
        best = sorted(range(5), key=losses.__getitem__)[:allowed]
        took = {int(name) for name, mask in result.plan.masks.items() if not mask.all()}
        assert took == set(best)
        assert result.achieved.accuracy == pytest.approx(1 - 0.1 * allowed)
        assert result.achieved.removed == 0.5 * allowed / 5
        assert all(
            torch.equal(mask, removal.plan(allowed).masks[name])
            for name, mask in result.plan.masks.items()
        )


def test_a_target_and_a_budget_are_both_met_or_refused():
    model = random_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))))
    inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))

    def evaluate(network):
        return 1 - 0.1 * sum(bool((layer.weight == 0).any()) for layer in network)

    def prune(drop, *budgets):
        return flexrel.prune(
            model,
            calibration=[inputs],
            evaluate=evaluate,
            target=AccuracyDrop(drop),
            budgets=budgets,
            granularity="2:4",
        )

    assert prune(0.3, Sparsity(0.2)).achieved.removed == 0.3
    with pytest.raises(BudgetError) as caught:
        prune(0.3, Sparsity(0.35))
    assert caught.value.resource == "accuracy"
    assert caught.value.closest == pytest.approx(0.6)  # four layers of five


@pytest.mark.parametrize(
    ("budget", "closest", "says"),
    [
        (Sparsity(0.51), 0.5, "That is 2:4 on all 2 layers."),
        (Parameters(11), 12 * 8 // 2 + 12 * 4 // 2 + 16, "That is 2:4 on all 2 layers."),
        (MACs(0.5), 12 * 12, "granularity='channel'"),
    ],
)
def test_a_budget_that_the_pattern_misses_is_refused_with_what_it_gives(budget, closest, says):
    model = random_(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4)))

    with pytest.raises(BudgetError) as caught:
        flexrel.prune(model, calibration=[torch.ones(2, 8)], budgets=[budget], granularity="2:4")

    assert caught.value.closest == closest
    assert says in str(caught.value)


def test_bytes_that_the_pattern_misses_are_refused_and_others_met():
    model = random_(nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 40)))
    options = {"calibration": [torch.ones(2, 40)], "granularity": "2:4"}

    with pytest.raises(BudgetError) as caught:
        flexrel.prune(model, budgets=[Bytes(0.2)], criterion=Magnitude(), **options)
    smallest = caught.value.closest
    for criterion in (Magnitude(), None):
        result = flexrel.prune(model, budgets=[Bytes(0.9)], criterion=criterion, **options)
        assert result.achieved.removed == 0.5  # on all layers, though one would do
        assert result.achieved.bytes <= 0.9 * result.dense.bytes
        assert criterion is None or 0 <= smallest - len(encode(result.model)) <= 0.06 * smallest


@settings(max_examples=30, derandomize=True)
@given(
    share=st.floats(0.3, 1.0),
    block=st.sampled_from(["block:4x4", "block:1x16", "block:3x2"]),
    resource=st.sampled_from([Parameters, Sparsity]),
    seed=st.integers(0, 99),
)
def test_budgets_on_blocks_are_met_with_nothing_removed_in_vain(share, block, resource, seed):
    model = random_(tower(), seed)
    budget = resource(share if resource is Parameters else min(share, 0.99))
    try:
        result = flexrel.prune(
            model,
            calibration=[PICTURES],
            budgets=[budget],
            granularity=block,
            criterion=Magnitude(),
        )
    except BudgetError as error:
        assert error.resource == budget.resource.name  # noqa: PT017
        return
    plan, graph = result.plan, result.plan.graph
    assume(plan.removed)
    scores = scores_of(Magnitude(), graph, named_tensors(model), None)
    one_less = UnitRanking(graph, scores).plan(plan.removed - 1)

    assert result.achieved.parameters == count_nonzero(result.model)
    if resource is Parameters:
        assert result.achieved.parameters <= share * result.dense.parameters
        assert cost.parameters(graph, one_less.masks) > int(share * result.dense.parameters)
    else:
        assert plan.removed / graph.units >= budget.amount
        assert one_less.removed / graph.units < budget.amount


def test_a_byte_budget_on_blocks_is_met():
    result = flexrel.prune(
        tower(), calibration=[PICTURES], budgets=[Bytes(0.7)], granularity="block:1x4"
    )

    assert len(encode(result.model)) == result.achieved.bytes <= 0.7 * result.dense.bytes
    assert result.achieved.macs == result.dense.macs


def test_blocks_need_a_budget_and_no_pattern_rounds_widths():
    options = {"calibration": [PICTURES]}

    with pytest.raises(UsageError, match="nothing to prune to"):
        flexrel.prune(tower(), granularity="block:4x4", **options)
    for granularity in ("2:4", "block:4x4"):
        with pytest.raises(UsageError, match="multiple_of=8 of granularity"):
            flexrel.prune(
                tower(),
                granularity=granularity,
                budgets=[Sparsity(0.1)],
                options=flexrel.PruneOptions(multiple_of=8),
                **options,
            )


def labels_of(network):
    return float(network(PICTURES).argmax(1).float().mean() / 2)


@pytest.mark.parametrize("granularity", ["2:4", "block:4x4"])
def test_a_pruned_network_is_packed_without_loss_and_reported(granularity, tmp_path):
    result = flexrel.prune(
        tower(),
        calibration=[PICTURES],
        budgets=[Sparsity(0.4)],
        evaluate=labels_of,
        granularity=granularity,
        recover="none",
    )
    result = flexrel.compare(result, tower(), calibration=[PICTURES], evaluate=labels_of)
    result.save(tmp_path)
    pack(result.model, tmp_path / "again.flexrel")
    fresh = load(tmp_path / "model.flexrel", into=tower())
    replayed = flexrel.apply(tower(), Plan.load(tmp_path / "plan.json"))

    written = json.loads((tmp_path / "result.json").read_text())
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert same_bits(bits(fresh)[:5], bits(result.model)[:5])
    assert same_bits(bits(replayed)[:5], bits(result.model)[:5])
    assert written["granularity"] == plan["granularity"] == granularity
    assert {s["name"]: s["units"] for s in plan["groups"]} == {
        group.name: group.units for group in result.plan.graph.groups
    }
    units = "weights" if granularity == "2:4" else "blocks"
    of = {"2:4": "weights", "block:4x4": "blocks of 4 x 4"}[granularity]
    kept = {
        group.name: int(result.plan.masks[group.name].sum()) for group in result.plan.graph.groups
    }
    assert f"7: keeps {kept['7']} of {result.plan.masks['7'].numel()} {of}" in result.plan.explain()
    assert f"{100 * result.achieved.removed:.2f} %" in Page(result.report()).row(f"{units} zeroed")


@pytest.mark.parametrize(
    ("granularity", "change", "says"),
    [
        ("block:2x3", {"layout": {"groups": 1, "transposed": False}}, "expected [3, 12]"),
        ("block:2x3", {"layout": {"groups": 5, "transposed": False}}, "in 5 groups"),
        ("block:2x3", {"layout": {"groups": 0, "transposed": False}}, "whole number from 1"),
        ("block:2x3", {"layout": {"groups": 2, "transposed": 1}}, "a layout"),
        ("block:2x3", {"layout": None}, "expected groups, transposed"),
        ("block:2x3", {"name": "1"}, "has weight None"),
        ("2:4", {"layout": {"groups": 4, "transposed": True}}, "in 4 groups"),
        ("element", {"layout": {"groups": 1, "transposed": False}}, "no groups or blocks"),
    ],
)
def test_a_plan_with_a_layout_that_does_not_fit_is_refused(granularity, change, says, tmp_path):
    plan = random_plan(analyse(tower(), batch(PICTURES), granularity), 0)
    content = Plan(plan.graph, plan.masks).as_json()
    group = next(group for group in content["groups"] if group["name"] == "2")
    group |= change
    (tmp_path / "plan.json").write_text(json.dumps(content))

    with pytest.raises(PackError, match=re.escape(says)):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_of_blocks_fits_only_a_network_with_these_layers():
    plan = random_plan(analyse(tower(), batch(PICTURES), "block:4x4"), 0)
    other = tower()
    other[7] = nn.Linear(80, 4)

    with pytest.raises(UsageError, match=r"7.weight is \[4, 80\], the plan's is \[3, 80\]"):
        apply(other, plan)


NET = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
inputs = lambda: [torch.randn(8, 6, generator=torch.Generator().manual_seed(1))]
"""


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (["2:4"], 8 * (2 + 2) + 3 * 4 + 11),
        (["1:4"], 8 * (1 + 2) + 3 * 2 + 11),
        (["block:8x2", "--budget", "sparsity=50%"], None),
    ],
)
def test_the_command_line_prunes_by_them(options, parameters, tmp_path, capsys):
    net = tmp_path / "net.py"
    net.write_text(NET)

    data = ("--calibration", f"{net}:inputs", "--out", str(tmp_path / "out"), "--json")
    code = main(["prune", f"{net}:make", *data, "--granularity", *options])

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert said["granularity"] == options[0]
    assert said["achieved"]["parameters"] == (parameters or said["achieved"]["parameters"])
    assert said["achieved"]["sparsity"] >= 0.35
    assert (tmp_path / "out" / "model.flexrel").stat().st_size == said["achieved"]["bytes"]


@pytest.mark.parametrize("text", ["0:4", "5:4", "2:0", "block:0x4", "2x4"])
def test_the_command_line_refuses_others_in_one_line(text, tmp_path, capsys):
    net = tmp_path / "net.py"
    net.write_text(NET)

    code = main(["prune", f"{net}:make", "--calibration", f"{net}:inputs", "--granularity", text])

    assert code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"'{text}'" in said
    assert "N:M with 0 < N < M, block:ROWSxCOLUMNS" in said

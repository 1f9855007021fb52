"""What is made of a network before it is read: masks applied, wrappers off; or a clear refusal."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import flexrel_edge
from flexrel import ModelError, Sparsity, apply, calibrate, prune
from flexrel.core.network import plain_network
from flexrel.io import load
from flexrel.pruning import pack


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)).eval()


def masked():
    """A network with half of two layers' weights masked, as torch has it, after a forward pass."""
    model = plain()
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    torch_prune.random_unstructured(model[0], "bias", 2)
    torch_prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    model(torch.randn(3, 8))
    return model


def own_mask():
    """What torch's masks leave, by hand."""
    model, goal = masked(), plain()
    with torch.no_grad():
        goal[0].weight.mul_(model[0].weight_mask)
        goal[0].bias.mul_(model[0].bias_mask)
        goal[2].weight.mul_(model[2].weight_mask)
    return goal


def test_masks_are_applied_to_a_copy_that_is_as_if_it_never_had_any():
    model = masked()
    state = copy.deepcopy(model.state_dict())

    found = plain_network(model)

    goal = own_mask()
    assert list(found.network.state_dict()) == list(goal.state_dict())
    for name, tensor in goal.state_dict().items():
        now = found.network.state_dict()[name]
        assert torch.equal(now, tensor)
        assert not bool(now[now == 0].signbit().any())
    assert not torch_prune.is_pruned(found.network)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert torch_prune.is_pruned(model)
    (line,) = found.warnings
    assert "3 masks of torch.nn.utils.prune (0.weight, 0.bias, 2.weight)" in line


def test_a_network_without_masks_is_a_copy_of_the_same_weights():
    model = plain()

    found = plain_network(model).network

    assert found is not model
    for one, other in zip(found.parameters(), model.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() == other.data_ptr()
    inside = plain_network(nn.DataParallel(model)).network
    assert [*inside.state_dict()] == [*model.state_dict()]
    assert plain_network(model).warnings == ()


def test_pack_applies_masks_and_says_so(tmp_path):
    done = pack(masked(), tmp_path / "m")

    tensors = flexrel_edge.read(tmp_path / "m")
    assert set(tensors) == {"0.weight", "0.bias", "2.weight"}
    assert (tensors["0.weight"] == 0).sum() == 64
    assert "3 masks of torch.nn.utils.prune" in done.warnings[0]
    fresh = load(tmp_path / "m", into=plain())
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(fresh(x), masked()(x))


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_prune_applies_masks_and_says_so_and_zeros_are_its_networks(granularity):
    model = masked()
    data = [torch.randn(64, 8)]
    asked = {"calibration": data, "budgets": [Sparsity(0.6)], "criterion": "magnitude"}
    asked |= {"recover": "none", "granularity": granularity}

    found, goal = prune(model, **asked), prune(own_mask(), **asked)

    assert "3 masks of torch.nn.utils.prune" in found.warnings[0]
    assert found.form == "module"
    assert found.dense.bytes == goal.dense.bytes
    assert found.packed == goal.packed
    again = apply(model, found.plan)
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def with_weight(change):
    """A network whose first weight is made into something else."""
    model = plain()
    model[0].weight = nn.Parameter(change(model[0].weight.detach()), requires_grad=False)
    return model


def with_turns():
    model = plain()
    model.register_buffer("turns", torch.zeros(3, dtype=torch.complex64))
    return model


BROKEN = {
    "script": lambda: torch.jit.script(plain()),
    "part of script": lambda: nn.Sequential(torch.jit.script(plain()), nn.ReLU()),
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}),
    "meta": lambda: plain().to("meta"),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(4)),
    "nan": lambda: with_weight(lambda w: w.masked_fill(torch.arange(8) > 4, torch.nan)),
    "complex": with_turns,
    "float8": lambda: with_weight(lambda w: w.to(torch.float8_e4m3fn)),
    "coo": lambda: with_weight(lambda w: w.to_sparse()),
    "csr": lambda: with_weight(lambda w: w.to_sparse_csr()),
    "subclass": lambda: with_weight(Own),
    "subclass of no operations": lambda: with_weight(lambda w: w.as_subclass(Named)),
}


class Named(torch.Tensor):
    """A tensor of a class that says no more than its name."""


class Own(torch.Tensor):
    """A tensor that does its operations itself, as those of torchao."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        return NotImplemented


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("script", "the model is TorchScript, .* pass the nn.Module"),
        ("part of script", "module '0' is TorchScript, .* pass the nn.Module"),
        ("quantised", "module '0' is quantised already .*Linear.*pass the floating network"),
        ("meta", "0.weight is on the meta device, .* load the weights first"),
        ("lazy", "0.weight is not initialised yet; call the model once"),
        ("nan", "0.weight has 48 NaN of 128 values"),
        ("complex", "turns is complex64; packed files hold .*: convert it"),
        ("float8", "0.weight is float8_e4m3fn; packed files hold .*: convert it"),
        ("coo", "0.weight is of layout torch.sparse_coo; make it dense"),
        ("csr", "0.weight is of layout torch.sparse_csr; make it dense"),
        ("subclass", "0.weight is a Own, a tensor of a class of its own; pass a network of plain"),
        ("subclass of no operations", "0.weight is a Named, a tensor of a class of its own; pass"),
    ],
)
def test_what_can_not_be_read_is_refused_in_one_line_that_names_it(kind, said, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on its own layouts and old modules
        model = BROKEN[kind]()

    for what in (
        lambda: pack(model, tmp_path / "m"),
        lambda: prune(model, calibration=[torch.randn(64, 8)], budgets=[Sparsity(0.5)]),
    ):
        with pytest.raises(ModelError, match=said) as refused:
            what()
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("script", "the model is TorchScript"),
        ("part of script", "module '0' is TorchScript"),
        ("quantised", "module '0' is quantised already"),
        ("meta", "0.weight is on the meta device"),
        ("lazy", "0.weight is not initialised yet"),
        ("coo", "0.weight is of layout torch.sparse_coo"),
        ("subclass", "0.weight is a Own"),
        ("subclass of no operations", "0.weight is a Named"),
    ],
)
def test_calibrate_refuses_what_can_not_be_read_in_the_same_words(kind, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on its own layouts and old modules
        model = BROKEN[kind]()

    with pytest.raises(ModelError, match=said):
        calibrate(model, [torch.randn(4, 8)])


@pytest.mark.parametrize("kind", ["lazy", "coo", "csr", "subclass", "subclass of no operations"])
def test_load_refuses_a_model_whose_tensors_take_no_values(kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = BROKEN[kind]()
    pack(plain(), tmp_path / "m")

    with pytest.raises(ModelError, match=r"^0\.weight is "):
        load(tmp_path / "m", into=model)

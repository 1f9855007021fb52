"""Operations are called in messages what people call them."""

import pytest
import torch
from torch import nn

from flexrel import ModelError, prune
from flexrel.core.running import reason
from flexrel.core.wording import everyday


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aten.native_layer_norm", "layer norm"),
        ("aten._softmax", "softmax"),
        ("aten.mkldnn_rnn_layer", "an LSTM"),
        ("aten.vdot", "torch.vdot"),
        ("aten.cumsum_", "Tensor.cumsum_"),
        ("aten.linalg_inv_ex", "torch.linalg.inv_ex"),
        ("aten._cdist_forward", "torch.cdist"),
        ("aten.im2col", "the operation im2col"),
        ("aten.glu", "torch.nn.functional.glu"),
        ("aten.copy_", "an assignment to entries"),
        ("__rmatmul__", "a matrix product"),
        ("__itruediv__", "torch.div"),
        ("scaled_dot_product_attention", "attention"),
        ("mine.relu", "mine.relu"),
        ("mine::relu", "mine::relu"),
    ],
)
def test_an_operation_has_its_everyday_name(name, said):
    assert everyday(name) == said


def test_inner_names_in_messages_of_torch_are_replaced():
    error = RuntimeError(
        "Could not run 'aten::_cdist_forward.out' with: derivative for aten::vdot\nand more"
    )

    assert reason(error) == "Could not run 'torch.cdist' with: derivative for torch.vdot"
    other = RuntimeError("no decomposition for torch.ops.aten.native_layer_norm.default here")
    assert reason(other) == "no decomposition for layer norm here"


class Net(nn.Module):
    """A layer, something that nothing is known of, and a layer."""

    def __init__(self, odd, **parts):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.parts = nn.ModuleDict(parts)
        self.odd = odd

    def forward(self, x):
        return self.last(self.odd(self.parts, self.first(x).relu()))


ODD = {
    "a sum of products": (
        Net(lambda _, x: x * torch.vdot(x.flatten(), x.flatten())),
        r"torch.vdot \(test_wording.py:\d+\)",
    ),
    "cumsum": (Net(lambda _, x: x.cumsum(1)), r"torch.cumsum \(test_wording.py:\d+\)"),
    "softmax": (
        Net(lambda p, x: p["gate"](x), gate=nn.Softmax(1)),
        r"softmax \(module 'parts.gate', test_wording.py:\d+\)",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_a_reason_names_operation_module_and_line_of_the_users_code(name):
    model, said = ODD[name]

    with pytest.raises(ModelError, match=said) as refused:
        prune(model.eval(), calibration=[torch.randn(64, 6)], budgets=["macs=50%"])

    assert "aten" not in str(refused.value)
    assert "_layer" not in str(refused.value)


def test_no_protected_reason_has_an_inner_name():
    model = nn.ModuleList(net for net, _ in ODD.values())

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets, self.free = model, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return sum(net(x) for net in self.nets) + self.free(x)

    found = prune(
        All().eval(), calibration=[torch.randn(64, 6)], budgets=["macs=98%"], criterion="magnitude"
    )

    said = " ".join([*(p.reason for p in found.plan.graph.protected), *found.warnings])
    assert "torch.cumsum" in said
    assert "aten" not in said

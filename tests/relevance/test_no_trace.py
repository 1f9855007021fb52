"""Calibration leaves no trace on the model, the batches or the process."""

import pytest
import torch
from torch import nn

from flexrel import ModelError, UsageError, calibrate
from networks import Witness
from probes import IMAGES, assert_same, classifier


class Careless(nn.Module):
    """Draws random numbers as it runs, and fails on a call of one's choice."""

    def __init__(self):
        super().__init__()
        self.witness = Witness()

    def forward(self, x):
        self.witness.see()
        return x + 1e-3 * torch.rand_like(x)


def model_in_use():
    """Modes, wishes for gradients, and gradients are all mixed, as in the middle of training."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(2),
        Careless(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(18, 4),
        nn.Linear(4, 3),
    ).double()
    model.train()
    model[2].eval()
    model[7].eval()
    model[0].weight.requires_grad_(False)
    model[7].bias.requires_grad_(False)
    model[6].weight.grad = torch.full_like(model[6].weight, 0.25)
    model[0].weight.grad = torch.full_like(model[0].weight, -1.0)  # from before it was frozen
    model[4].register_forward_hook(lambda *_: None)  # the user's own
    return model


def trace(model):
    """All that must be as it was. Gradients by identity, too."""
    hooks = {
        (name, attribute): list(value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if "hooks" in attribute and value is not None
    }
    parameters = list(model.parameters())
    return {
        "hooks": hooks,
        "forward": [vars(module).get("forward") for module in model.modules()],
        "modes": [module.training for module in model.modules()],
        "wants": [parameter.requires_grad for parameter in parameters],
        "gradients": [id(parameter.grad) for parameter in parameters],
        "values of gradients": [p.grad.tolist() for p in parameters if p.grad is not None],
        "tensors": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "identities": [id(tensor) for tensor in (*parameters, *model.buffers())],
        "random state": torch.random.get_rng_state().tolist(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
    }


def drawing(count):
    """Batches that draw from the global random state, as a shuffling loader does."""
    return (torch.randn(3, 1, 5, 5, dtype=torch.float64) for _ in range(count))


def test_success_leaves_no_trace():
    model = model_in_use()
    before = trace(model)

    calibrate(model, drawing(3))

    assert trace(model) == before


class Ran(Exception):
    pass


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(RuntimeError("no luck"), ModelError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_exception_in_the_model_leaves_no_trace(failure, seen, call):
    model = model_in_use()
    witness = model[3].witness
    witness.failure, witness.failing = failure, call
    before = trace(model)

    with pytest.raises(seen):
        calibrate(model, drawing(3))

    assert witness.calls == call
    assert trace(model) == before


def test_an_exception_from_the_batches_passes_and_leaves_no_trace():
    def batches():
        yield from drawing(1)
        raise Ran

    model = model_in_use()
    before = trace(model)

    with pytest.raises(Ran):
        calibrate(model, batches())

    assert trace(model) == before


@pytest.mark.parametrize("failure", [Ran(), KeyboardInterrupt()])
def test_an_exception_from_the_callable_or_progress_passes_and_leaves_no_trace(failure):
    def fail(*_):
        raise failure

    model = model_in_use()
    before = trace(model)

    with pytest.raises(type(failure)):
        calibrate(model, drawing(2), output=fail)
    with pytest.raises(type(failure)):
        calibrate(model, drawing(2), progress=fail)

    assert trace(model) == before


def test_an_exception_in_the_backward_pass_leaves_no_trace():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    class Last(nn.Module):
        def forward(self, x):
            return Fails.apply(x)

    model = model_in_use().append(Last())
    before = trace(model)

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, drawing(2))

    assert trace(model) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_after_a_good_one_leaves_no_trace(bad):
    model = model_in_use()
    before = trace(model)

    with pytest.raises(UsageError):
        calibrate(model, [IMAGES, torch.full_like(IMAGES, bad)])

    assert trace(model) == before


def test_the_batch_keeps_its_values_and_its_gradient():
    x = IMAGES.clone().requires_grad_()
    (x * 3).sum().backward()
    before = x.grad.clone()

    calibrate(classifier(), [x])

    assert torch.equal(x.grad, before)
    assert torch.equal(x, IMAGES)
    assert x.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_that_want_no_gradients_get_the_same_stats(mode):
    model, labels = classifier(), torch.tensor([0, 2, 1, 1])
    expected = calibrate(model, [(IMAGES, labels)], output="label")

    with mode():
        made_inside = (IMAGES.clone(), labels.clone())
        before = trace(model)
        found = calibrate(model, [made_inside], output="label")
        assert trace(model) == before

    assert_same(found, expected)
    assert_same(calibrate(model, [made_inside], output="label"), expected)


def test_parameters_that_wanted_gradients_still_train_afterwards():
    model = classifier()

    calibrate(model, [IMAGES])
    model(IMAGES).sum().backward()

    assert all(parameter.grad is not None for parameter in model.parameters())

"""Into a network of other dtypes: rounded to the nearest at most, else refused with numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import flexrel_edge
from flexrel import UsageError, load


class Holder(nn.Module):
    """One buffer."""

    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("held", tensor)


def loaded(values, dtype, tmp_path):
    """Write a numpy array, and load it into a buffer of torch's dtype."""
    flexrel_edge.write(tmp_path / "m", {"held": values})
    into = Holder(torch.full(values.shape, 1, dtype=dtype))
    return load(tmp_path / "m", into=into).held


@pytest.mark.parametrize(
    ("values", "dtype", "text", "count"),
    [
        (
            np.float64([1, 1e300, 2]),
            torch.float32,
            r"held \(float64\) has 1e\+300.*float32.* inf",
            1,
        ),
        (np.float32([7e4, -7e4]), torch.float16, r"has 70000\.0.*float16 would be inf", 2),
        (np.float64([3.4e38, 1e39]), torch.bfloat16, r"bfloat16 would be inf", 2),
        (np.float32([0, 1, 2.7]), torch.int64, r"has 2\.7.*int64 would be 2,", 1),
        (np.float32([300]), torch.uint8, r"has 300\.0.*uint8", 1),
        (np.float32([np.nan, np.inf, 1]), torch.int32, r"has nan.*int32", 2),
        (np.float32([2, 1, 0]), torch.bool, r"has 2\.0.*bool would be True", 1),
        (np.int64([5, 2**40]), torch.int32, rf"has {2**40}.*int32 would be 0", 1),
        (np.int64([-1]), torch.uint64, r"has -1.*uint64 would be 18446744073709551615", 1),
        (np.uint64([2**63 + 1]), torch.int64, r"has 9223372036854775809.*int64 would be -9", 1),
        (np.int64([2**24, 2**24 + 1]), torch.float32, r"has 16777217.*would be 16777216\.0", 1),
        (np.int32([257]), torch.bfloat16, r"has 257.*would be 256\.0", 1),
        (np.array(2.5, np.float32), torch.int8, r"has 2\.5.*int8 would be 2,", 1),
    ],
)
def test_a_value_that_would_be_another_is_refused(values, dtype, text, count, tmp_path):
    with pytest.raises(UsageError, match=text) as caught:
        loaded(values, dtype, tmp_path)

    assert f"and so {count} of {values.size} values" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.float64([1 / 3, 1e-300, np.inf, np.nan]), torch.float32, [1 / 3, 0, np.inf, np.nan]),
        (np.float32([1e-9, 2049, 65504]), torch.float16, [0, 2048, 65504]),
        (np.float16([0.1, -0.0]), torch.float64, [0.0999755859375, 0]),
        (np.float32([3, -2, 0]), torch.int8, [3, -2, 0]),
        (np.float64([2.0**62]), torch.int64, [2**62]),
        (np.int64([2**24, -3]), torch.float32, [2**24, -3]),
        (np.int64([7, 0]), torch.uint64, [7, 0]),
        (np.array([True, False]), torch.float16, [1, 0]),
        (np.uint8([1, 0]), torch.bool, [True, False]),
        (np.zeros((0, 3), np.float64), torch.int32, np.zeros((0, 3))),
    ],
)
def test_what_another_dtype_holds_is_loaded(values, dtype, expected, tmp_path):
    found = loaded(values, dtype, tmp_path)

    assert found.dtype == dtype
    held = found.double() if dtype.is_floating_point else found
    np.testing.assert_allclose(held.numpy(), expected, rtol=6e-8)


def test_a_bfloat16_file_is_judged_too(tmp_path):
    bits = torch.tensor([1e38, 0.5]).bfloat16()
    stored = flexrel_edge.Bfloat16(bits.view(torch.uint16).numpy())
    flexrel_edge.write(tmp_path / "m", {"held": stored})

    assert torch.equal(load(tmp_path / "m", into=Holder(torch.zeros(2))).held, bits.float())
    for dtype, value in ((torch.float16, "inf"), (torch.int64, "")):
        with pytest.raises(UsageError, match=rf"held \(bfloat16\) has .* would be {value}"):
            load(tmp_path / "m", into=Holder(torch.zeros(2, dtype=dtype)))


def test_all_names_are_told_before_anything_of_the_model_changes(tmp_path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    before = [p.clone() for p in model.parameters()]
    names = model.state_dict().keys()
    flexrel_edge.write(
        tmp_path / "m", {n: np.full(model.state_dict()[n].shape, 1e300) for n in names}
    )

    with pytest.raises(
        UsageError, match=r"0\.weight .*; 0\.bias .*; 1\.weight .*; and 5 tensors more"
    ):
        load(tmp_path / "m", into=model)

    assert all(map(torch.equal, before, model.parameters()))


def test_a_bias_that_a_cut_left_is_judged_by_its_layer(tmp_path):
    arrays = {"weight": np.ones((2, 2), np.float32), "bias": np.float64([1e300, 0])}
    flexrel_edge.write(tmp_path / "m", arrays)

    with pytest.raises(UsageError, match=r"bias \(float64\) has 1e\+300"):
        load(tmp_path / "m", into=nn.Linear(2, 2, bias=False))

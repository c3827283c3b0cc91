import math

import numpy as np
import pytest
import torch

from delta_transfer.errors import DataError
from delta_transfer.features.variance import RELATIVE_VARIANCE_FLOOR, FeatureVariance
from tests import reference


def measured(batches) -> torch.Tensor:
    variance = FeatureVariance()
    for batch in batches:
        variance.update(batch)
    return variance.compute()


@pytest.mark.parametrize("shape", [(10, 3, 4), (10, 4)], ids=["maps", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_variance_is_numpys_whatever_the_batches(shape, dtype):
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=dtype) * torch.tensor([0.1, 1, 5, 20]) + 7
    expected = np.var(features.double().numpy().reshape(-1, 4), axis=0).mean()
    for sizes in ([10], [4, 4, 2], [1] * 10):
        found = measured(features.split(sizes))
        assert found.shape == ()
        assert found.dtype == dtype
        assert found.item() == pytest.approx(expected, rel=1e-5)
    lists = reference.maps(features, "tokens" if len(shape) == 3 else "rows")
    assert reference.variance([lists[:4], lists[4:]]) == pytest.approx(expected)


def test_variance_survives_a_large_mean_in_float32():
    torch.manual_seed(0)
    features = 1e4 + torch.randn(4000, 2)
    expected = np.var(features.double().numpy(), axis=0).mean()
    assert measured(features.split(32)).item() == pytest.approx(expected, rel=1e-3)


def test_half_precision_features_are_measured_in_float32():
    features = torch.full((8, 2048, 2), 300.0, dtype=torch.float16)
    features[:4] = -300
    found = measured(features.split(3))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(300.0**2, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_constant_features_have_a_floor_relative_to_their_size(scale):
    found = measured([torch.full((3, 2), 0.1 * scale)]).item()
    assert found == pytest.approx(RELATIVE_VARIANCE_FLOOR * (0.1 * scale) ** 2)


def test_features_of_zero_have_no_scale_and_no_features_are_an_error():
    assert measured([torch.zeros(3, 2)]).item() == 1
    with pytest.raises(DataError, match="no features to measure: the loader is empty"):
        FeatureVariance().compute()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("count", [1, 6])
def test_features_that_are_not_finite_have_no_variance(value, count):
    features = torch.randn(3, 2)
    features.view(-1)[:count] = value
    assert measured([features]).isnan()
    assert measured([torch.zeros(3, 2), features]).isnan()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_the_dtype_is_that_of_the_result(dtype, expected):
    variance = FeatureVariance()
    variance.update(torch.ones(3, 2, dtype=dtype))
    restored = FeatureVariance.from_state(variance.state(), device=torch.device("cpu"))
    for found in (variance, restored, variance.all_reduce()):
        assert found.dtype == found.compute().dtype == expected


def test_a_restored_state_continues_exactly():
    torch.manual_seed(0)
    features = torch.randn(10, 3, 4)
    for cut in (0, 1, 6):
        expected = FeatureVariance()
        if cut:
            expected.update(features[:cut])
        state = expected.state()
        expected.update(features[cut:])
        found = FeatureVariance.from_state(state, device=torch.device("cpu"))
        found.update(features[cut:])
        assert torch.equal(found.compute(), expected.compute())


def test_variance_keeps_no_graph():
    assert not measured([torch.randn(3, 2, requires_grad=True)]).requires_grad

import math

import pytest
import torch
import torch.nn.functional as F

from delta_transfer.metrics.calibration import temperature_scaled_nll


def test_calibrated_cross_entropy_is_the_lowest_over_a_grid_of_temperatures():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (40,), generator=generator)
    logits = torch.randn(40, 5, generator=generator) + 2 * F.one_hot(targets, 5)
    for scale in (0.2, 1.0, 7.0):
        grid = torch.logspace(-1.301, 1.301, 4001, dtype=torch.float64)
        lowest = min(F.cross_entropy(scale * logits.double() / t, targets).item() for t in grid)
        assert temperature_scaled_nll(scale * logits, targets) == pytest.approx(lowest, abs=1e-5)
    assert math.isnan(temperature_scaled_nll(logits * math.inf, targets))


def test_the_best_temperature_is_between_a_twentieth_and_twenty():
    logits, targets = torch.eye(3, dtype=torch.float64), torch.arange(3)
    always_right = F.cross_entropy(20 * logits, targets).item()
    assert temperature_scaled_nll(logits, targets) == pytest.approx(always_right, rel=1e-3)
    never_right = F.cross_entropy(logits / 20, targets.roll(1)).item()
    found = temperature_scaled_nll(logits, targets.roll(1))
    assert found == pytest.approx(never_right, rel=1e-6)

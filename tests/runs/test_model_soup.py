import math

import pytest
import torch

from delta_transfer.runs.model_soup import (
    Mixture,
    average_states,
    choose_mixture,
    format_percent,
    has_loss_barrier,
    mixtures,
)


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 2, generator=generator),
        "half": torch.randn(4, generator=generator).half(),
        "steps": torch.tensor(seed),
    }


def losses_of(
    gains: dict[Mixture, float], *, noise: float = 0.0, count: int = 100
) -> dict[Mixture, torch.Tensor]:
    """Losses lower than the default's by a gain, give or take some noise."""
    generator = torch.Generator().manual_seed(0)
    choices = mixtures(2, averaged=True)
    base = 1 + torch.rand(count, generator=generator, dtype=torch.float64)
    return {
        one: base
        - gains.get(one, 0.0)
        + noise * torch.randn(count, generator=generator, dtype=torch.float64) * bool(i)
        for i, one in enumerate(choices)
    }


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_mixtures_are_distinct_averages_of_the_start_and_the_candidates(count, averaged):
    found = mixtures(count, averaged=averaged)
    assert len(set(found)) == len(found)
    assert all(len(one) == 1 + count and min(one) >= 0 for one in found)
    assert [sum(one) for one in found] == pytest.approx([1.0] * len(found))
    start, *singles = ([float(i == j) for j in range(1 + count)] for i in range(1 + count))
    assert {tuple(single) for single in singles} < set(found)
    assert found[-1] == tuple(start)


def test_the_default_is_the_average_of_all_candidates_or_the_strongest():
    assert mixtures(2, averaged=True)[0] == (0.0, 0.5, 0.5)
    assert mixtures(2, averaged=False) == ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))


def test_an_average_is_weighted_number_by_number():
    states, shares = [state(0), state(1), state(2)], (0.5, 0.3, 0.2)
    found = average_states(states, shares)
    for name in ("weight", "half"):
        flat = [one[name].flatten().tolist() for one in states]
        expected = [0.5 * a + 0.3 * b + 0.2 * c for a, b, c in zip(*flat, strict=True)]
        torch.testing.assert_close(
            found[name], torch.tensor(expected).view_as(found[name]).to(states[0][name].dtype)
        )
        assert found[name].dtype == states[0][name].dtype
    assert found["steps"] == 2  # a count is no weight


@pytest.mark.parametrize("i", range(3))
def test_all_of_one_is_that_one_to_the_bit(i):
    states = [state(0), state(1), state(2)]
    found = average_states(states, [float(j == i) for j in range(3)])
    assert torch.equal(found["weight"], states[i]["weight"])
    assert torch.equal(found["half"], states[i]["half"])


def test_what_is_left_out_of_an_average_may_be_broken():
    broken = {**state(1), "weight": torch.full((3, 2), math.nan)}
    found = average_states([state(0), broken], (1.0, 0.0))
    assert torch.equal(found["weight"], state(0)["weight"])


def test_a_running_mean_is_the_mean():
    states = [state(i) for i in range(3)]
    mean = states[0]
    for number, one in enumerate(states, start=1):
        mean = average_states([mean, one], (1 - 1 / number, 1 / number))
    expected = torch.stack([one["weight"] for one in states]).mean(dim=0)
    torch.testing.assert_close(mean["weight"], expected)


@pytest.mark.parametrize("best", mixtures(2, averaged=True))
def test_what_is_better_by_far_is_chosen(best):
    assert choose_mixture(losses_of({best: 0.5})) == best


def test_the_start_is_chosen_if_all_else_is_worse():
    start = (1.0, 0.0, 0.0)
    worse = {one: -1.0 for one in mixtures(2, averaged=True) if one != start}
    assert choose_mixture(losses_of(worse)) == start


def test_a_gain_that_is_noise_leaves_the_default():
    choices = mixtures(2, averaged=True)
    worse = dict.fromkeys(choices[2:], -9.0)
    tiny = {choices[1]: 1e-3}
    assert choose_mixture(losses_of({**worse, **tiny}, noise=1.0)) == choices[0]
    assert choose_mixture(losses_of({**worse, **tiny}, noise=1e-6)) == choices[1]


def test_equal_losses_and_single_samples_leave_the_default():
    choices = mixtures(2, averaged=True)
    assert choose_mixture(losses_of({})) == choices[0]
    assert choose_mixture(losses_of({choices[1]: 0.5}, count=1)) == choices[0]


def test_a_loss_that_is_not_finite_is_never_chosen():
    choices = mixtures(2, averaged=True)
    losses = losses_of({choices[1]: 0.5, choices[2]: 0.3})
    losses[choices[1]] = torch.full_like(losses[choices[1]], math.nan)
    assert choose_mixture(losses) == choices[2]
    losses[choices[0]] = torch.full_like(losses[choices[0]], math.inf)
    assert choose_mixture(losses) == choices[2]


def test_the_start_is_all_that_is_left_without_any_finite_loss():
    choices = mixtures(2, averaged=True)
    broken = {one: torch.full((5,), math.nan) for one in choices}
    assert choose_mixture(broken) == choices[-1]


def test_percent():
    assert format_percent((0.0, 0.5, 0.5)) == "0/50/50"


@pytest.mark.parametrize(
    ("loss", "parts", "coefficients", "expected"),
    [
        (0.3, (0.2, 0.4), (0.5, 0.5), False),
        (0.33, (0.2, 0.4), (0.5, 0.5), False),  # within a standard error, 0.05
        (0.36, (0.2, 0.4), (0.5, 0.5), True),
        (0.36, (0.2, 0.4), (0.25, 0.75), False),
        (0.3, (math.nan, 0.4), (0.0, 1.0), False),  # without a share
        (math.nan, (0.2, 0.4), (0.5, 0.5), True),
        (0.3, (math.nan, 0.4), (0.5, 0.5), True),
    ],
)
def test_a_barrier_is_a_loss_above_the_mean_of_the_parts(loss, parts, coefficients, expected):
    """On 4 samples with a standard deviation of 0.1."""
    losses = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
    losses = loss + 0.1 * losses / losses.std()
    assert has_loss_barrier(losses, parts, coefficients) == expected


def test_a_barrier_by_a_single_sample():
    assert has_loss_barrier(torch.tensor([0.5]), (0.4,), (1.0,))
    assert not has_loss_barrier(torch.tensor([0.4]), (0.5,), (1.0,))

import pytest
import torch

from delta_transfer.runs.model_soup import (
    CANDIDATE_COEFFICIENTS,
    SINGLE_MODELS,
    average_states,
    choose_coefficients,
)


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 2, generator=generator),
        "half": torch.randn(4, generator=generator).half(),
        "steps": torch.tensor(seed),
    }


def losses(*gains: float, noise: float = 0.0, count: int = 100) -> list[torch.Tensor]:
    """Of each candidate: so much lower than the default's, give or take some noise."""
    generator = torch.Generator().manual_seed(0)
    default = 1 + torch.rand(count, generator=generator, dtype=torch.float64)
    own = [0.0, *gains, *[0.0] * (len(CANDIDATE_COEFFICIENTS) - 1 - len(gains))]
    noises = [noise * torch.randn(count, generator=generator).double() for _ in own]
    return [default, *(default - g + e for g, e in zip(own[1:], noises[1:], strict=True))]


def test_shares_sum_to_one_and_the_default_is_an_equal_average():
    assert all(sum(shares) == 1 for shares in CANDIDATE_COEFFICIENTS)
    assert CANDIDATE_COEFFICIENTS[0] == (0.0, 0.5, 0.5)
    assert len(set(CANDIDATE_COEFFICIENTS)) == len(CANDIDATE_COEFFICIENTS)
    assert {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)} < set(CANDIDATE_COEFFICIENTS)


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


def test_the_lowest_loss_is_taken_if_it_is_clearly_lower():
    assert choose_coefficients(losses(0.1, 0.3, 0.2)) == CANDIDATE_COEFFICIENTS[2]


def test_a_gain_within_its_standard_error_is_none():
    worse = [-9.0] * (len(CANDIDATE_COEFFICIENTS) - 2)
    gain = 0.5 + torch.tensor([1.0, -1.0] * 50).double()  # standard error 1.005 / 10
    for offset, expected in (
        (-0.41, CANDIDATE_COEFFICIENTS[0]),
        (-0.39, CANDIDATE_COEFFICIENTS[1]),
    ):
        default, _, *others = losses(0.0, *worse)
        assert choose_coefficients([default, default - gain - offset, *others]) == expected


@pytest.mark.parametrize("best", range(3))
def test_of_trainings_that_are_not_averaged_the_lowest_loss_is_taken(best):
    found = [torch.ones(9, dtype=torch.float64) for _ in SINGLE_MODELS]
    found[best] -= 1e-6 + torch.linspace(-1, 1, 9).double()  # far within its standard error
    assert choose_coefficients(found, SINGLE_MODELS) == SINGLE_MODELS[best]
    assert SINGLE_MODELS[best] in CANDIDATE_COEFFICIENTS


def test_equal_losses_and_single_images_leave_the_default():
    assert choose_coefficients(losses()) == CANDIDATE_COEFFICIENTS[0]
    assert choose_coefficients(losses(0.5, count=1)) == CANDIDATE_COEFFICIENTS[0]


def test_what_is_no_number_is_never_taken():
    broken = losses(0.3, 0.1)
    broken[1] = torch.full_like(broken[1], torch.nan)
    assert choose_coefficients(broken) == CANDIDATE_COEFFICIENTS[2]
    broken[0] = torch.full_like(broken[0], torch.nan)
    assert choose_coefficients(broken) == CANDIDATE_COEFFICIENTS[2]
    assert (
        choose_coefficients([torch.full((5,), torch.nan)] * len(CANDIDATE_COEFFICIENTS))
        == CANDIDATE_COEFFICIENTS[0]
    )

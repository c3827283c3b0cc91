import pytest
import torch
from scipy import stats
from torch import Tensor

from delta_transfer.training.mixing import Mixing

IMAGES = torch.rand(4, 3, 8, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)


def mixed(step: int, *, seed: int = 0, **alphas: float) -> tuple[Tensor, Tensor]:
    return Mixing(num_classes=4, seed=seed, **alphas)(IMAGES, LABELS, step=step)


def own_share(targets: Tensor) -> float:
    """Of each image's own label; the rest is that of the image before it."""
    shares = targets.diagonal()
    assert torch.allclose(targets, torch.diag(shares) + torch.diag(1 - shares).roll(-1, 1))
    assert shares.unique().numel() == 1
    return float(shares[0])


def is_rectangle(mask: Tensor) -> bool:
    rows, columns = mask.any(dim=1), mask.any(dim=0)
    return torch.equal(mask, rows[:, None] & columns) and all(
        int((flags[1:] != flags[:-1]).sum()) <= 2 for flags in (rows, columns)
    )


def test_mixup_averages_each_image_with_the_one_before():
    for step in range(20):
        inputs, targets = mixed(step, mixup=0.8)
        share = own_share(targets)
        before = IMAGES[[3, 0, 1, 2]]
        torch.testing.assert_close(inputs, share * IMAGES + (1 - share) * before)


def test_cutmix_cuts_a_rectangle_out_of_the_one_before():
    found = set()
    for step in range(20):
        inputs, targets = mixed(step, cutmix=1.0)
        foreign = (inputs != IMAGES)[0, 0]
        assert is_rectangle(foreign)
        assert torch.equal(inputs, torch.where(foreign, IMAGES[[3, 0, 1, 2]], IMAGES))
        assert own_share(targets) == pytest.approx(1 - float(foreign.float().mean()))
        found.add(foreign.numpy().tobytes())
    assert len(found) > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    shares = [own_share(mixed(step, mixup=alpha)[1]) for step in range(300)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_with_both_each_step_is_one_of_them():
    def is_cut(inputs: Tensor) -> bool:
        return bool(((inputs == IMAGES) | (inputs == IMAGES.roll(1, 0))).all())

    cut = sum(is_cut(mixed(step, mixup=1.0, cutmix=1.0)[0]) for step in range(100))
    assert 30 < cut < 70


def test_numbers_depend_on_seed_and_step_alone():
    before = torch.get_rng_state()
    first = mixed(3, mixup=1.0, cutmix=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = mixed(3, mixup=1.0, cutmix=1.0)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(mixed(4, mixup=1.0)[1], mixed(3, mixup=1.0)[1])
    assert not torch.equal(mixed(3, mixup=1.0, seed=1)[1], mixed(3, mixup=1.0)[1])


def test_without_either_nothing_is_mixed():
    inputs, targets = mixed(0)
    assert inputs is IMAGES
    assert targets is LABELS

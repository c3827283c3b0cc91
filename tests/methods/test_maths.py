import math

import numpy as np
import pytest
import torch
from torch import Tensor

from delta_transfer.methods.bss import spectral_shrinkage
from delta_transfer.methods.co_tuning import category_relationship, source_temperature
from delta_transfer.methods.ldifs import pooled_distance
from delta_transfer.methods.lwf import distillation
from delta_transfer.methods.spd import selective_projection

HALF = [torch.float16, torch.bfloat16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / math.fsum(powers) for power in powers]


# -------------------------------------------------------------------------------- distillation


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_distillation_is_the_mean_divergence_from_the_source(temperature):
    target, source = draw(3, 5, seed=1), draw(3, 5, seed=2)
    total = 0.0
    for now, then in zip(target.tolist(), source.tolist(), strict=True):
        p, q = softmax(then, temperature), softmax(now, temperature)
        total += math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    found = distillation(target, source, temperature=temperature)
    assert found.item() == pytest.approx(total / 3, rel=1e-12)


def test_distillation_has_the_gradient_of_the_papers_cross_entropy():
    target, source = draw(3, 5, seed=1).requires_grad_(), draw(3, 5, seed=2)
    (found,) = torch.autograd.grad(distillation(target, source, temperature=2.0), target)
    p, q = torch.softmax(source / 2, dim=1), torch.softmax(target / 2, dim=1)
    assert torch.allclose(found, (q - p) / 2 / 3)


def test_equal_outputs_are_at_no_distance_and_have_no_gradient():
    logits = draw(3, 5, dtype=torch.float32).requires_grad_()
    found = distillation(logits, logits.detach().clone(), temperature=2.0)
    assert found.item() == 0
    assert torch.autograd.grad(found, logits)[0].abs().max() < 1e-7


# ------------------------------------------------------------------------------ singular values


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5)])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_smallest_singular_values_are_those_of_the_gram_matrix(shape, count):
    rows = draw(*shape)
    small = rows.numpy() if shape[0] < shape[1] else rows.numpy().T
    squares = np.linalg.eigvalsh(small @ small.T)  # ascending
    found = spectral_shrinkage(rows, count=count)
    assert found.item() == pytest.approx(squares[:count].sum(), rel=1e-9)


def test_their_gradient():
    rows = draw(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: spectral_shrinkage(r, count=2), (rows,))


@pytest.mark.parametrize("rows", [torch.zeros(3, 5), torch.ones(3, 5), torch.eye(4)])
def test_singular_values_that_are_zero_or_equal_have_finite_gradients(rows):
    rows = rows.clone().requires_grad_()
    (slope,) = torch.autograd.grad(spectral_shrinkage(rows, count=2), rows)
    assert slope.isfinite().all()


# --------------------------------------------------------------------------------------- pooled


def pooled_by_hand(samples: list[list[list[float]]]) -> list[list[float]]:
    found = []
    for positions in samples:
        means = [math.fsum(channel) / len(positions) for channel in zip(*positions, strict=True)]
        length = math.sqrt(math.fsum(mean**2 for mean in means))
        found.append([mean / length for mean in means])
    return found


def distance_by_hand(target: list, source: list) -> float:
    pairs = zip(pooled_by_hand(target), pooled_by_hand(source), strict=True)
    squares = [
        math.fsum((a - b) ** 2 for a, b in zip(now, then, strict=True)) for now, then in pairs
    ]
    return math.fsum(squares) / len(squares)


def test_the_pooled_distance_is_the_formula():
    target, source = draw(3, 4, 5, seed=1), draw(3, 4, 5, seed=2)
    found = pooled_distance(target, source)
    assert found.item() == pytest.approx(distance_by_hand(target.tolist(), source.tolist()))
    rows = pooled_distance(target[:, 0], source[:, 0])
    expected = distance_by_hand(target[:, :1].tolist(), source[:, :1].tolist())
    assert rows.item() == pytest.approx(expected)


def test_rows_are_pooled_over_their_samples_whose_numbers_may_have_gaps():
    target, source, groups = draw(6, 5, seed=1), draw(6, 5, seed=2), [7, 2, 7, 7, 0, 2]
    both = [
        [[f[i].tolist() for i, g in enumerate(groups) if g == sample] for sample in (0, 2, 7)]
        for f in (target, source)
    ]
    found = pooled_distance(target, source, groups=torch.tensor(groups))
    assert found.item() == pytest.approx(distance_by_hand(*both))


def test_it_depends_neither_on_places_nor_on_lengths():
    target, source = draw(3, 4, 5, seed=1), draw(3, 4, 5, seed=2)
    plain = pooled_distance(target, source).item()
    assert pooled_distance(target.flip(1), 10 * source).item() == pytest.approx(plain)
    assert pooled_distance(target, -target).item() == pytest.approx(4)


def test_its_gradient_also_where_all_features_are_zero():
    target, source = draw(2, 3, 4, seed=1).requires_grad_(), draw(2, 3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda t: pooled_distance(t, source), (target,))
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(pooled_distance(zero, torch.zeros(2, 3, 4)), zero)
    assert slope.isfinite().all()


# --------------------------------------------------------------------------------- relationship


def relationship_by_hand(logits: Tensor, labels: list[int], classes: int, t: float) -> list:
    rows = [softmax(row, t) for row in logits.tolist()]
    found = []
    for y in range(classes):
        own = [row for row, label in zip(rows, labels, strict=True) if label == y] or rows
        found.append([math.fsum(column) / len(own) for column in zip(*own, strict=True)])
    return found


def test_the_relationship_is_the_mean_of_each_class():
    logits, labels = draw(7, 5), [0, 2, 2, 0, 3, 3, 3]  # none of class 1
    found = category_relationship(logits, torch.tensor(labels), num_outputs=4, temperature=1.5)
    expected = torch.tensor(relationship_by_hand(logits, labels, 4, 1.5), dtype=torch.float64)
    assert torch.allclose(found, expected)
    assert torch.allclose(found.sum(dim=1), torch.ones(4, dtype=torch.float64))


def surprise_by_hand(logits: Tensor, labels: list[int], t: float) -> float:
    """How little the other samples tell of the class of each."""
    rows, total = [softmax(row, t) for row in logits.tolist()], 0.0
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        chance = 0.0
        for s, p in enumerate(row):
            others = [rows[j][s] for j in range(len(rows)) if j != i]
            own = [rows[j][s] for j in range(len(rows)) if j != i and labels[j] == label]
            chance += p * math.fsum(own) / math.fsum(others)
        total -= math.log(chance)
    return total / len(rows)


def test_the_temperature_is_that_at_which_other_samples_tell_most():
    labels = [i % 3 for i in range(12)]
    logits = draw(12, 6) + 2 * torch.eye(6, dtype=torch.float64)[labels]
    found = source_temperature(logits, torch.tensor(labels))
    grid = [math.exp(i / 20) for i in range(-59, 60)]
    best = min(grid, key=lambda t: surprise_by_hand(logits, labels, t))
    assert found == pytest.approx(best, rel=0.06)
    assert 1 / 19 < found < 19
    assert source_temperature(3 * logits, torch.tensor(labels)) == pytest.approx(
        3 * found, rel=1e-3
    )


def test_a_class_with_one_image_does_not_upset_the_temperature():
    labels = [0, 0, 0, 1, 1, 1, 2]
    logits = draw(7, 6) + 2 * torch.eye(6, dtype=torch.float64)[labels]
    assert math.isfinite(source_temperature(logits, torch.tensor(labels)))


# ----------------------------------------------------------------------------------- projection


def projected_by_hand(
    moved: list[float], before: list[float], start: list[float], slope: list[float], strength: float
) -> list[float]:
    c = -math.fsum(g * (w - w0) for g, w, w0 in zip(slope, before, start, strict=True))
    if not c < 0:
        return moved
    now = math.dist(moved, start)
    ratio = max(0.0, now - math.dist(before, start)) / now
    return [w - strength * ratio * (w - w0) for w, w0 in zip(moved, start, strict=True)]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_projection_is_the_papers(strength):
    drawn = 0
    for seed in range(20):
        start, before, moved, slope = (draw(4, seed=4 * seed + i) for i in range(4))
        found = selective_projection(moved, before, start, slope, factor=strength)
        expected = projected_by_hand(
            *(t.tolist() for t in (moved, before, start, slope)), strength=strength
        )
        assert found.tolist() == pytest.approx(expected, rel=1e-12)
        drawn += found.tolist() != moved.tolist()
    assert (0 < drawn < 20) == (strength > 0)


def test_strength_one_keeps_the_distance_from_the_start():
    start, before = draw(5, seed=1), draw(5, seed=2)
    slope = before - start
    moved = start + 1.5 * (before - start) + 0.1 * draw(5, seed=3)
    found = selective_projection(moved, before, start, slope, factor=1.0)
    assert (found - start).norm().item() == pytest.approx((before - start).norm().item())


def test_the_first_step_is_free():
    start = draw(5, dtype=torch.float32)
    moved = start + 1
    assert torch.equal(selective_projection(moved, start, start, -start, factor=1.0), moved)
    assert torch.equal(selective_projection(start, start, start, start, factor=1.0), start)


# ------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_computed_in_single_precision(dtype):
    one, other = draw(3, 4, seed=1).to(dtype), draw(3, 4, seed=2).to(dtype)
    for found, wide in [
        [function(a, b) for a, b in ((one, other), (one.float(), other.float()))]
        for function in (
            lambda a, b: distillation(a, b, temperature=2.0),
            lambda a, b: spectral_shrinkage(a, count=2),
            pooled_distance,
        )
    ]:
        assert found.dtype == torch.float32
        assert torch.equal(found, wide)
    left = selective_projection(one, other, torch.zeros_like(one), one, factor=0.5)
    assert left.dtype == dtype

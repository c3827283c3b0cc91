import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import SelectiveProjection, UserError
from delta_transfer.methods.spd import selective_projection
from tests.methods.draws import draw
from tests.networks import conv_net


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A target and its source, whose head is another one."""
    torch.manual_seed(seed)
    source = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    target = copy.deepcopy(source)
    target[2] = nn.Linear(4, 2).double()
    return target, source


def loss(target: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    labels = torch.randint(2, (6,), generator=generator)
    return nn.functional.cross_entropy(target(inputs), labels)


def adam_by_hand(target: nn.Module, source: nn.Module, *, steps: int, strength: float) -> int:
    """Adam and the projection in loops over numbers; how often weights were drawn back."""
    lr, betas, eps = 0.1, (0.9, 0.999), 1e-8
    start = {n: p.detach().flatten().tolist() for n, p in source.named_parameters()}
    moments: dict[str, list[list[float]]] = {}
    drawn = 0
    for step in range(1, steps + 1):
        target.zero_grad()
        loss(target, step).backward()
        for name, parameter in target.named_parameters():
            weights, slopes = (
                parameter.detach().flatten().tolist(),
                parameter.grad.flatten().tolist(),
            )
            first, second = moments.setdefault(name, [[0.0] * len(weights), [0.0] * len(weights)])
            new = []
            for i, (w, g) in enumerate(zip(weights, slopes, strict=True)):
                first[i] = betas[0] * first[i] + (1 - betas[0]) * g
                second[i] = betas[1] * second[i] + (1 - betas[1]) * g * g
                m, v = first[i] / (1 - betas[0] ** step), second[i] / (1 - betas[1] ** step)
                new.append(w - lr * m / (math.sqrt(v) + eps))
            origin = start.get(name, [])
            if len(origin) == len(weights):
                c = -sum(g * (w - o) for g, w, o in zip(slopes, weights, origin, strict=True))
                now = math.dist(new, origin)
                ratio = max(0.0, now - math.dist(weights, origin)) / now
                if c < 0 and ratio > 0:
                    drawn += 1
                    new = [w - strength * ratio * (w - o) for w, o in zip(new, origin, strict=True)]
            with torch.no_grad():
                parameter.copy_(torch.tensor(new, dtype=torch.float64).view_as(parameter))
    return drawn


def train(
    target: nn.Module,
    source: nn.Module,
    make: Callable[..., torch.optim.Optimizer],
    *,
    steps: int = 12,
    strength: float = 1.0,
    closure: bool = False,
) -> None:
    optimizer = make(target.parameters(), lr=0.1, weight_decay=0.0)
    with SelectiveProjection(optimizer, target, source, factor=strength):
        for step in range(1, steps + 1):

            def compute(step: int = step) -> float:
                optimizer.zero_grad()
                value = loss(target, step)
                value.backward()
                return value.item()

            if closure:
                optimizer.step(compute)
            else:
                compute()
                optimizer.step()


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_adam_with_it_is_the_algorithm_of_the_paper(strength, closure):
    (target, source), (expected, _) = networks(), networks()
    assert adam_by_hand(expected, source, steps=12, strength=strength) > 3
    start = weights(source)
    train(target, source, torch.optim.AdamW, strength=strength, closure=closure)
    assert torch.allclose(weights(target), weights(expected), rtol=1e-9)
    assert torch.equal(weights(source), start)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_strength_zero_is_the_optimiser_alone(make):
    (target, source), (plain, _) = networks(), networks()
    train(target, source, make, strength=0.0)
    optimizer = make(plain.parameters(), lr=0.1, weight_decay=0.0)
    for step in range(1, 13):
        optimizer.zero_grad()
        loss(plain, step).backward()
        optimizer.step()
    assert torch.equal(weights(target), weights(plain))


def test_weights_without_a_gradient_stay_and_the_optimiser_is_given_back():
    target, source = networks()
    target[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(target.parameters(), lr=0.1)
    for _ in range(2):  # it may be entered again
        with SelectiveProjection(optimizer, target, source):
            loss(target, 1).backward()
            optimizer.step()
    assert torch.equal(target[0].weight, source[0].weight)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_errors():
    target, source = networks()
    optimizer = torch.optim.AdamW(target.parameters())
    with pytest.raises(ValueError, match="factor must be a number >= 0"):
        SelectiveProjection(optimizer, target, source, factor=-1.0)
    with pytest.raises(UserError, match="share no parameter"):
        SelectiveProjection(optimizer, target, conv_net())


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_projected_weights_keep_half_precision(dtype):
    one, other = draw(3, 4, seed=1).to(dtype), draw(3, 4, seed=2).to(dtype)
    found = selective_projection(one, other, torch.zeros_like(one), one, factor=0.5)
    assert found.dtype == dtype

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import LDIFS, Regularizer, Step
from delta_transfer.methods.ldifs import pooled_distance
from tests import reference
from tests.methods.draws import draw
from tests.networks import conv_net, moved


def features(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"maps": (3, 4, 5), "rows": (3, 6)}
    return {
        tap: torch.randn(shape, dtype=dtype, generator=generator) for tap, shape in shapes.items()
    }


def step(now: dict[str, Tensor], then: dict[str, Tensor]) -> Step:
    return Step(
        target=nn.Identity(), source=nn.Identity(), target_features=now, source_features=then
    )


def unit(samples: list) -> list[list[float]]:
    """The mean over the positions of each sample, divided by its length."""
    found = []
    for positions in samples:
        means = [math.fsum(values) / len(positions) for values in zip(*positions, strict=True)]
        found.append([mean / math.hypot(*means) for mean in means])
    return found


def by_hand(now: list, then: list) -> float:
    pairs = list(zip(unit(now), unit(then), strict=True))
    return math.fsum(math.dist(a, b) ** 2 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("strength", [0.3, 10.0])
def test_ldifs_is_the_formula_summed_over_taps(strength):
    now, then = features(1), features(2)
    maps = by_hand(now["maps"].tolist(), then["maps"].tolist())
    rows = by_hand(*(reference.maps(f["rows"], "rows") for f in (now, then)))
    found = LDIFS(["maps", "rows"], strength=strength)(step(now, then))
    assert found.item() == pytest.approx(strength * (maps + rows))


def test_the_defaults():
    assert (LDIFS().strength, LDIFS().taps, LDIFS("a").taps) == (10.0, ("auto",), ("a",))


def test_gradients_and_zero_at_the_start():
    penalty, then = LDIFS(["maps"], strength=0.3), features(2)
    now = features(1)["maps"].requires_grad_()
    assert torch.autograd.gradcheck(lambda f: penalty(step({"maps": f}, then)), (now,))
    start = features(2)["maps"].requires_grad_()
    term = penalty(step({"maps": start}, then))
    assert term.item() == 0
    assert torch.autograd.grad(term, start)[0].abs().max() == 0


def test_it_is_in_single_precision_under_autocast_and_computes_where_it_is_put():
    penalty = LDIFS(["maps"], strength=0.3)
    now, then = (features(seed, torch.bfloat16) for seed in (1, 2))
    wide = [{tap: f.float() for tap, f in side.items()} for side in (now, then)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(step(now, then)), penalty(step(*wide)))
    there = [{tap: f.to("meta") for tap, f in side.items()} for side in (now, then)]
    assert penalty.to("meta")(step(*there)).device.type == "meta"


def test_copies_and_pickles_are_the_same_penalty():
    penalty, given = LDIFS(["maps", "rows"], strength=0.3), step(features(1), features(2))
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert other(given).item() == penalty(given).item()
    assert not penalty.state_dict()


def test_in_a_training_loop():
    source, inputs = conv_net(), torch.randn(3, 3, 8, 8)
    target = moved(source)
    with Regularizer(target, source, [LDIFS(["norm1", "conv3"], strength=2.0)]) as regularizer:
        target(inputs)
        term = regularizer(inputs).total
        term.backward()
    expected = 0.0
    both = [reference.hooked(net, ["norm1", "conv3"], inputs)[1] for net in (target, source)]
    for tap in ("norm1", "conv3"):
        expected += by_hand(*(reference.maps(found[tap], "NCHW") for found in both))
    assert term.item() == pytest.approx(2 * expected, rel=1e-4)
    assert target.conv1.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in source.parameters())


def test_the_pooled_distance_is_the_formula():
    target, source = draw(3, 4, 5, seed=1), draw(3, 4, 5, seed=2)
    found = pooled_distance(target, source)
    assert found.item() == pytest.approx(by_hand(target.tolist(), source.tolist()))
    rows = pooled_distance(target[:, 0], source[:, 0])
    expected = by_hand(target[:, :1].tolist(), source[:, :1].tolist())
    assert rows.item() == pytest.approx(expected)


def test_rows_are_pooled_over_their_samples_whose_numbers_may_have_gaps():
    target, source, groups = draw(6, 5, seed=1), draw(6, 5, seed=2), [7, 2, 7, 7, 0, 2]
    both = [
        [[f[i].tolist() for i, g in enumerate(groups) if g == sample] for sample in (0, 2, 7)]
        for f in (target, source)
    ]
    found = pooled_distance(target, source, groups=torch.tensor(groups))
    assert found.item() == pytest.approx(by_hand(*both))


def test_the_pooled_distance_depends_neither_on_places_nor_on_lengths():
    target, source = draw(3, 4, 5, seed=1), draw(3, 4, 5, seed=2)
    plain = pooled_distance(target, source).item()
    assert pooled_distance(target.flip(1), 10 * source).item() == pytest.approx(plain)
    assert pooled_distance(target, -target).item() == pytest.approx(4)


def test_the_gradient_of_the_pooled_distance_also_where_all_features_are_zero():
    target, source = draw(2, 3, 4, seed=1).requires_grad_(), draw(2, 3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda t: pooled_distance(t, source), (target,))
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(pooled_distance(zero, torch.zeros(2, 3, 4)), zero)
    assert slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_pooled_distance_of_half_precision_is_in_single_precision(dtype):
    one, other = draw(3, 4, seed=1).to(dtype), draw(3, 4, seed=2).to(dtype)
    pairs = ((one, other), (one.float(), other.float()))
    found, wide = (pooled_distance(a, b) for a, b in pairs)
    assert found.dtype == torch.float32
    assert torch.equal(found, wide)

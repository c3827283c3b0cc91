import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import LDIFS, Regularizer, Step
from tests import reference
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

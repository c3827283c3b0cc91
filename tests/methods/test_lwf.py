import math

import pytest
import torch

from delta_transfer import LwF, Regularizer
from delta_transfer.errors import ModelError
from delta_transfer.methods.lwf import distillation
from tests.methods.classifiers import (
    classifier,
    log_softmax,
    logits_by_hand,
    make,
    rows,
    softmax,
    step,
)
from tests.methods.draws import draw
from tests.networks import conv_net, moved


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_lwf_is_the_formula_with_a_classifier_that_has_moved(temperature, bias):
    penalty = LwF(classifier(bias), head="fc", strength=0.3, temperature=temperature)
    penalty.classifier = moved(penalty.classifier)
    now, then = rows(1), rows(2)
    total = 0.0
    for new, old in zip(
        logits_by_hand(penalty.classifier, now), logits_by_hand(classifier(bias), then), strict=True
    ):
        q = log_softmax([value / temperature for value in new])
        p = log_softmax([value / temperature for value in old])
        total += math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    assert penalty(step(now, then)).item() == pytest.approx(0.3 * total / 4)


def test_lwf_is_zero_where_the_target_starts():
    penalty, now = make("lwf"), rows(1).requires_grad_()
    term = penalty(step(now, rows(1)))
    assert term.item() == 0
    assert torch.autograd.grad(term, now)[0].abs().max() < 1e-12


def test_strength_and_temperature_are_the_papers():
    assert LwF(classifier(), head="fc").strength == 1.0
    assert LwF(classifier(), head="fc").temperature == 2.0


def test_a_missing_source_is_an_error():
    with pytest.raises(ModelError, match=r"^lwf needs the source network: "):
        Regularizer(conv_net(), None, [make("lwf")])


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_distillation_of_half_precision_is_in_single_precision(dtype):
    one, other = draw(3, 4, seed=1).to(dtype), draw(3, 4, seed=2).to(dtype)
    pairs = ((one, other), (one.float(), other.float()))
    found, wide = (distillation(a, b, temperature=2.0) for a, b in pairs)
    assert found.dtype == torch.float32
    assert torch.equal(found, wide)

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import CoTuning, LwF, Penalty, Regularizer, Step, UserError
from tests.networks import ConvNet, conv_net, moved

LABELS = torch.tensor([0, 2, 1, 2])


def classifier(bias: bool = True) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(6, 9, bias=bias).double()


def relationship() -> Tensor:
    torch.manual_seed(6)
    return torch.softmax(torch.randn(3, 9, dtype=torch.float64), dim=1)


def make(name: str, strength: float = 0.3) -> Penalty:
    if name == "lwf":
        return LwF(classifier(), head="fc", strength=strength)
    return CoTuning(classifier(), relationship(), head="fc", strength=strength)


def rows(seed: int) -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(now: Tensor, then: Tensor) -> Step:
    return Step(
        target=nn.Identity(),
        source=nn.Identity(),
        targets=LABELS,
        head_inputs={"fc": now},
        source_head_inputs={"fc": then},
    )


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def logits_by_hand(head: nn.Linear, features: Tensor) -> list[list[float]]:
    bias = [0.0] * 9 if head.bias is None else head.bias.tolist()
    both = list(zip(head.weight.tolist(), bias, strict=True))
    return [
        [math.fsum(map(math.prod, zip(row, w, strict=True))) + c for w, c in both]
        for row in features.tolist()
    ]


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


def test_co_tuning_is_the_formula():
    penalty, now = make("co_tuning"), rows(1)
    total = 0.0
    for logits, label in zip(logits_by_hand(classifier(), now), LABELS.tolist(), strict=True):
        wanted = relationship()[label].tolist()
        total -= math.fsum(a * b for a, b in zip(wanted, log_softmax(logits), strict=True))
    assert penalty(step(now, rows(2))).item() == pytest.approx(0.3 * total / 4)


def test_co_tuning_of_mixed_labels_is_the_mean_by_their_shares():
    penalty, now = make("co_tuning"), rows(1)
    given = step(now, rows(2))
    one, other = (
        penalty(dataclasses.replace(given, targets=labels)) for labels in (LABELS, LABELS.roll(1))
    )
    shares = torch.nn.functional.one_hot(torch.stack([LABELS, LABELS.roll(1)]), 3).float()
    mixed = 0.25 * shares[0] + 0.75 * shares[1]
    found = penalty(dataclasses.replace(given, targets=mixed))
    torch.testing.assert_close(found, 0.25 * one + 0.75 * other)


def test_the_strengths_are_the_papers():
    assert LwF(classifier(), head="fc").strength == 1.0
    assert LwF(classifier(), head="fc").temperature == 2.0
    assert CoTuning(classifier(), relationship(), head="fc").strength == 2.3


@pytest.mark.parametrize("name", ["lwf", "co_tuning"])
def test_the_classifier_is_trained_and_the_one_that_was_given_is_not(name):
    given = classifier().requires_grad_(False)
    penalty = make(name)
    trained = {n for n, p in penalty.named_parameters() if p.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}
    now, then = rows(1).requires_grad_(), rows(2).requires_grad_()
    penalty(step(now, then)).backward()
    assert penalty.classifier.weight.grad.abs().max() > 0
    assert now.grad.abs().max() > 0
    assert then.grad is None
    assert given.weight.grad is None


@pytest.mark.parametrize("name", ["lwf", "co_tuning"])
def test_gradients(name):
    penalty, then = make(name), rows(2)
    now = rows(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: penalty(step(r, then)), (now,))


def test_lwf_is_zero_where_the_target_starts():
    penalty, now = make("lwf"), rows(1).requires_grad_()
    term = penalty(step(now, rows(1)))
    assert term.item() == 0
    assert torch.autograd.grad(term, now)[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["lwf", "co_tuning"])
def test_copies_pickles_and_states_are_the_same_penalty(name):
    penalty = make(name)
    penalty.classifier = moved(penalty.classifier)
    given = step(rows(1), rows(2))
    other = make(name)
    assert other(given).item() != penalty(given).item()
    other.load_state_dict(penalty.state_dict())
    for same in (other, copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert same(given).item() == penalty(given).item()


@pytest.mark.parametrize("name", ["lwf", "co_tuning"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single_precision_also_under_autocast(name, dtype):
    penalty = make(name).float()
    now, then = rows(1).to(dtype), rows(2).to(dtype)
    expected = penalty(step(now.float(), then.float()))
    assert torch.equal(penalty(step(now, then)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(step(now, then)), expected)
    assert expected.dtype == torch.float32


@pytest.mark.parametrize("name", ["lwf", "co_tuning"])
def test_it_computes_where_it_is_put(name):
    """The "meta" device is one that every machine has."""
    given = step(rows(1).to("meta"), rows(2).to("meta"))
    moved_labels = Step(**{**vars(given), "targets": LABELS.to("meta")})
    assert make(name).to("meta")(moved_labels).device.type == "meta"


class Counting(ConvNet):
    """Counts its forward passes, and how many of them reached the head."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


@pytest.mark.parametrize(("name", "needed"), [("lwf", True), ("co_tuning", False)])
def test_in_a_training_loop_the_source_runs_only_if_it_is_needed(name, needed):
    source, target = Counting(), conv_net()
    source.load_state_dict(target.state_dict())
    source.fc = nn.Identity()
    inputs = torch.randn(4, 3, 8, 8)
    penalty = make(name).float()
    with Regularizer(target, source, [penalty]) as regularizer:
        optimizer = torch.optim.SGD([*target.parameters(), *regularizer.parameters()], lr=0.1)
        target.train()
        target.drop.p = 0.0
        target(inputs)
        terms = regularizer(inputs, LABELS)
        assert (source.passes > 0) == needed
        expected = {"lwf": 0.0, "co_tuning": penalty(_rows_of(target, inputs)).item()}
        assert terms.values[name].item() == pytest.approx(expected[name], abs=1e-7)
        before = penalty.classifier.weight.detach().clone()
        for _ in range(2):  # of lwf the first is zero
            task = target(inputs).square().mean()
            (task + regularizer(inputs, LABELS).total).backward()
            optimizer.step()
    assert not torch.allclose(before, penalty.classifier.weight)


def _rows_of(target: ConvNet, inputs: Tensor) -> Step:
    found: list[Tensor] = []
    handle = target.fc.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    target(inputs)
    handle.remove()
    return step(found[0], found[0])


def test_errors():
    with pytest.raises(UserError, match="CoTuning needs the labels"):
        make("co_tuning")(Step(target=nn.Identity(), source=None, head_inputs={"fc": rows(1)}))
    with pytest.raises(ValueError, match=r"must be \[classes, 9\].*got \(3, 8\)"):
        CoTuning(classifier(), relationship()[:, :8], head="fc")
    with pytest.raises(UserError, match="lwf needs the source network"):
        Regularizer(conv_net(), None, [make("lwf")])
    with pytest.raises(UserError, match="unknown head 'fc2'"):
        Regularizer(conv_net(), None, [CoTuning(classifier(), relationship(), head="fc2")])

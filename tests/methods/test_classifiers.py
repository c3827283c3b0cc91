"""What LwF and Co-Tuning share: a classifier of their own, which is trained."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import Regularizer, Step
from tests.methods.classifiers import LABELS, classifier, make, rows, step
from tests.networks import ConvNet, conv_net, moved


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

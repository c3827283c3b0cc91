import copy

import pytest
import torch
from torch import nn

from delta_transfer.errors import ModelError
from delta_transfer.methods import L2SP, Step
from tests import reference
from tests.methods.on_weights import TOLERANCE, check_copies, check_gradients
from tests.networks import conv_net, moved


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_l2sp_is_the_formula_over_all_parameters_that_both_have(dtype):
    source = conv_net().to(dtype)
    target = moved(source)
    target.fc = nn.Linear(6, 7).to(dtype)  # a head of another shape starts from nowhere
    target.added = nn.Linear(2, 2).to(dtype)
    found = L2SP(strength=0.3)(Step(target=target, source=source))
    expected = 0.3 * 0.5 * reference.squared_way(target, source)
    assert found.item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    by_hand = [
        now.detach() - then.detach()
        for name in ("conv1", "norm1", "conv2", "norm2", "conv3")
        for now, then in zip(
            target.get_submodule(name).parameters(),
            source.get_submodule(name).parameters(),
            strict=True,
        )
    ]
    assert expected == pytest.approx(0.3 * 0.5 * reference.squared_norm(by_hand))


def test_l2sp_counts_batch_norm_and_is_zero_at_the_start():
    source = conv_net()
    target = copy.deepcopy(source)
    step = Step(target=target, source=source)
    assert L2SP(strength=1.0)(step).item() == 0
    with torch.no_grad():
        target.norm1.bias[0] += 2
    assert L2SP(strength=1.0)(step).item() == pytest.approx(2.0)


def test_l2sp_errors():
    with pytest.raises(ModelError, match=r"^L2SP needs the source network: "):
        L2SP(strength=1.0)(Step(target=conv_net(), source=None))
    with pytest.raises(ModelError, match=r"^L2SP: .* share no parameter"):
        L2SP(strength=1.0)(Step(target=conv_net(), source=nn.Linear(2, 2)))


def test_gradients():
    check_gradients(L2SP(strength=0.3))


def test_copies_and_pickles_are_the_same_penalty():
    check_copies(L2SP(strength=0.3))

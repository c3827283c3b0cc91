import copy

import pytest
import torch
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.features.head_inputs import HeadInputs
from tests.networks import conv_net, hooks_of


def test_what_the_head_is_given_is_what_it_makes_its_output_of():
    net, inputs = conv_net(), torch.randn(4, 3, 8, 8)
    with HeadInputs(net, ["fc"]) as heads:
        for images in (torch.zeros_like(inputs), inputs):  # the last pass counts
            logits = net(images)
        (found,) = heads.inputs().values()
    assert found.shape == (4, 6)
    assert torch.equal(net.fc(found), logits)


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = conv_net()
    with HeadInputs(net, ["fc"]):
        assert hooks_of(net) == 1
    assert hooks_of(net) == 0
    with pytest.raises(RuntimeError, match="on purpose"), HeadInputs(net, ["fc"]):
        raise RuntimeError("on purpose")
    assert hooks_of(net) == 0


def test_a_copy_made_inside_does_not_disturb():
    net, inputs = conv_net(), torch.randn(2, 3, 8, 8)
    with HeadInputs(net, ["fc"]) as heads:
        net(inputs)
        before = heads.inputs()["fc"]
        copy.deepcopy(net)(inputs + 1)
        assert heads.inputs()["fc"] is before


def test_errors():
    net = conv_net()
    with pytest.raises(UserError, match="unknown head 'head'"):
        HeadInputs(net, ["head"])
    with HeadInputs(net, ["fc"]) as heads, pytest.raises(RuntimeError, match="no forward pass"):
        heads.inputs()
    tokens = nn.Sequential(nn.Linear(3, 2))
    with HeadInputs(tokens, ["0"]) as heads:
        tokens(torch.zeros(2, 5, 3))
        with pytest.raises(UserError, match=r"rows \[B, F\], got \(2, 5, 3\)"):
            heads.inputs()

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from delta_transfer.backbones import replace_module
from delta_transfer.backbones.base import (
    fresh_head,
    own_tensors,
    tensors_in_order,
    turn_off_dropout,
)
from tests.networks import conv_net


def test_replace_module_finds_its_place_by_name():
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 3))
    replace_module(model, "0.1", nn.Identity())
    replace_module(model, "1", nn.Tanh())
    assert [type(module).__name__ for module in (*model[0], model[1])] == [
        "ReLU",
        "Identity",
        "Tanh",
    ]


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.9),
        nn.Dropout2d(0.9),
        nn.AlphaDropout(0.9),
        DropPath(0.9),
        StochasticDepth(0.9, "row"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_turn_off_dropout_leaves_nothing_to_chance_in_train_mode(module):
    model = nn.Sequential(nn.Identity(), nn.Sequential(module)).train()
    inputs = torch.ones(64, 3, 2, 2)
    assert not torch.equal(model(inputs), inputs)
    turn_off_dropout(model)
    assert torch.equal(model(inputs), inputs)
    assert model.training


def test_tensors_in_order_gives_a_checkpoint_the_names_of_the_model():
    model, other = conv_net(seed=0), conv_net(seed=1, outputs=1000)
    state = {f"{i}": tensor for i, tensor in enumerate(other.state_dict().values())}
    named = tensors_in_order(state, model, but="fc")
    assert list(named) == [name for name in model.state_dict() if not name.startswith("fc.")]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in named.items())


def test_tensors_in_order_needs_no_head():
    model, other = conv_net(seed=0), conv_net(seed=1)
    body = [tensor for name, tensor in other.state_dict().items() if not name.startswith("fc.")]
    named = tensors_in_order({f"{i}": t for i, t in enumerate(body)}, model, but="fc")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in named.items())


def test_tensors_in_order_refuses_a_head_that_sees_something_else():
    model = conv_net()
    state = {**model.state_dict(), "fc.weight": torch.ones(1000, 7)}
    with pytest.raises(ValueError, match=r"fc\.weight: \(1000, 7\) in the checkpoint"):
        tensors_in_order(state, model, but="fc")


def test_a_fresh_head_is_of_the_networks_dtype_and_has_a_bias():
    model = nn.Sequential(nn.Linear(4, 3, bias=False, dtype=torch.float64))
    fresh_head(model, "0", num_outputs=2)
    assert (model[0].weight.shape, model[0].bias.shape) == ((2, 4), (2,))
    assert model[0].bias.dtype == torch.float64


def test_own_tensors_are_the_networks_own_and_nothing_else():
    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

    model = Extra(2, 2)
    tensors = own_tensors(model)
    assert list(tensors) == ["weight", "bias"]
    tensors["bias"].fill_(3)
    assert model.bias.tolist() == [3, 3]


def test_tensors_in_order_refuses_a_file_of_another_network():
    model = conv_net()
    state = dict(model.state_dict())
    fewer = {name: tensor for name, tensor in state.items() if name != "conv3.bias"}
    with pytest.raises(ValueError, match="has 17 tensors, the model has 18"):
        tensors_in_order(fewer, model, but="fc")
    with pytest.raises(
        ValueError, match=r"conv2\.weight: \(4, 4, 1, 1\) in the checkpoint, \(4, 4"
    ):
        tensors_in_order({**state, "conv2.weight": torch.ones(4, 4, 1, 1)}, model, but="fc")

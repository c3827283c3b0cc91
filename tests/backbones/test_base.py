import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from delta_transfer.backbones.base import (
    disable_dropout,
    replace_head,
    replace_module,
    state_tensors,
)


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
        DropBlock2d(0.9, block_size=1),
        StochasticDepth(0.9, "row"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_turn_off_dropout_leaves_nothing_to_chance_in_train_mode(module):
    model = nn.Sequential(nn.Identity(), nn.Sequential(module)).train()
    inputs = torch.ones(64, 3, 2, 2)
    assert not torch.equal(model(inputs), inputs)
    disable_dropout(model)
    assert torch.equal(model(inputs), inputs)
    assert model.training


class Rates(nn.Module):
    """Functional dropout, with its probability in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0.9
        self.dropout = 0.9
        self.attention_dropout = 0.9
        self.drop_path = 2  # not a probability, so it stays

    def forward(self, x: Tensor) -> Tensor:
        for rate in (self.drop_rate, self.dropout, self.attention_dropout):
            x = F.dropout(x, p=rate, training=self.training)
        return x


def test_turn_off_dropout_knows_dropout_that_is_a_call():
    module = Rates().train()
    inputs = torch.ones(64, 3, 2, 2)
    assert not torch.equal(module(inputs), inputs)
    disable_dropout(module)
    assert torch.equal(module(inputs), inputs)
    assert module.drop_path == 2


def test_disable_dropout_keeps_other_values():
    module = Rates()
    module.drop_rate, module.dropout, module.drop_prob = None, True, "0.5"
    disable_dropout(module)
    assert (module.drop_rate, module.dropout, module.drop_prob) == (None, True, "0.5")


def test_turn_off_dropout_keeps_all_patches():
    module = PatchDropout(0.5, num_prefix_tokens=0).train()
    assert module(torch.ones(2, 8, 3)).shape == (2, 4, 3)
    disable_dropout(module)
    assert module(torch.ones(2, 8, 3)).shape == (2, 8, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("test_resnet", drop_rate=0.5, drop_block_rate=0.5),
        lambda: timm.create_model("test_efficientnet", drop_rate=0.5, drop_path_rate=0.5),
        lambda: timm.create_model("test_vit", drop_rate=0.5, attn_drop_rate=0.5, img_size=64),
        lambda: timm.create_model("densenet121", drop_rate=0.5),
        lambda: torchvision.models.DenseNet(4, (2, 2), 8, drop_rate=0.5),
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 8, [1, 1], [1, 1], [4, 4], dropout=0.5, attention_dropout=0.5
        ),
    ],
    ids=["resnet", "efficientnet", "vit", "timm_densenet", "densenet", "swin"],
)
def test_networks_have_no_dropout(make):
    torch.manual_seed(0)
    model, inputs = make(), torch.rand(2, 3, 64, 64)
    for module in model.modules():
        module.train(not isinstance(module, nn.modules.batchnorm._BatchNorm))
    with torch.no_grad():
        assert not torch.equal(model(inputs), model(inputs))
        disable_dropout(model)
        assert torch.equal(model(inputs), model(inputs))


def test_a_fresh_head_is_of_the_networks_dtype_and_has_a_bias():
    model = nn.Sequential(nn.Linear(4, 3, bias=False, dtype=torch.float64))
    replace_head(model, "0", num_outputs=2)
    assert (model[0].weight.shape, model[0].bias.shape) == ((2, 4), (2,))
    assert model[0].bias.dtype == torch.float64


def test_own_tensors_are_the_networks_own_and_nothing_else():
    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

    model = Extra(2, 2)
    tensors = state_tensors(model)
    assert list(tensors) == ["weight", "bias"]
    tensors["bias"].fill_(3)
    assert model.bias.tolist() == [3, 3]

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import InputSpec
from delta_transfer.backbones.custom import wrap_network
from delta_transfer.errors import UserError
from tests.networks import ConvNet, conv_net, hooks_of

SPEC = InputSpec(size=16, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


def wrapped(network: nn.Module, **options: object):
    return wrap_network(network, **{"num_outputs": 2, "image_size": 16, **options})


def test_the_network_is_copied_and_left_as_it_was():
    network = conv_net(seed=1, outputs=7)
    network.conv1.requires_grad_(False)
    network.fc.weight.grad = torch.ones(7, 6)
    before = copy.deepcopy(network)
    modes = {name: module.training for name, module in network.named_modules()}
    backbone = wrapped(network)
    assert backbone.module is not network
    for (name, after), (_, was) in zip(
        network.state_dict().items(), before.state_dict().items(), strict=True
    ):
        assert torch.equal(after, was), name
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert network.drop.p == 0.5
    assert network.fc.out_features == 7
    assert hooks_of(network) == 0
    assert not network.conv1.weight.requires_grad
    assert torch.equal(network.fc.weight.grad, torch.ones(7, 6))


def test_the_copy_has_its_weights_a_new_head_and_no_dropout():
    network = conv_net(seed=1, outputs=7)
    network.conv1.weight.grad = torch.ones(4, 3, 3, 3)
    backbone = wrapped(network)
    assert (backbone.head, backbone.architecture, backbone.model_args) == ("fc", None, {})
    for name, tensor in backbone.module.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, network.state_dict()[name])
    head = backbone.module.get_submodule("fc")
    assert (type(head), head.in_features, head.out_features) == (nn.Linear, 6, 2)
    assert head.weight.abs().max() <= 6**-0.5
    assert backbone.module.drop.p == 0
    assert all(module.training for module in backbone.module.modules())
    assert all(parameter.grad is None for parameter in backbone.module.parameters())


def test_its_old_head_is_not_used_as_pretrained_classifier():
    assert wrap_network(conv_net(), num_outputs=2, image_size=32).classifier is None


def test_the_new_head_always_has_a_bias():
    network = conv_net()
    network.fc = nn.Linear(6, 3, bias=False)
    assert wrapped(network).module.fc.bias is not None


def test_what_is_frozen_stays_frozen():
    network = conv_net().requires_grad_(False)
    backbone = wrapped(network)
    trainable = [name for name, p in backbone.module.named_parameters() if p.requires_grad]
    assert trainable == ["fc.weight", "fc.bias"]


def test_dtype_is_kept():
    backbone = wrapped(conv_net().double())
    assert backbone.module.fc.weight.dtype == torch.float64


@pytest.mark.parametrize("size", [None, 24])
def test_an_input_spec_is_used(size):
    backbone = wrap_network(conv_net(), num_outputs=2, input_spec=SPEC, image_size=size)
    assert backbone.input_spec == InputSpec(**{**SPEC.__dict__, "size": size or 16})
    assert backbone.notes == ()


def test_the_preprocessing_of_timm_is_used():
    network = timm.create_model("test_resnet", num_classes=7)
    backbone = wrap_network(network, num_outputs=2)
    cfg = network.pretrained_cfg
    assert backbone.input_spec.size == cfg["input_size"][-1]
    assert (backbone.input_spec.mean, backbone.input_spec.std) == (cfg["mean"], cfg["std"])
    assert backbone.notes == ()
    assert wrap_network(network, num_outputs=2, image_size=64).input_spec.size == 64


def test_without_an_input_spec_imagenets_is_used_with_a_note():
    backbone = wrap_network(conv_net(), num_outputs=2)
    assert backbone.input_spec == InputSpec(
        size=224,
        crop_pct=0.875,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
    )
    (note,) = backbone.notes
    assert note.startswith("the preprocessing of ConvNet is not known")
    assert "224 pixels" in note
    assert "96 pixels" in wrap_network(conv_net(), num_outputs=2, image_size=96).notes[0]


class TwoLinear(ConvNet):
    """A network whose last linear layer is not its head."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(6, 9)


class SpareHead(ConvNet):
    """A network with an unused linear layer of the size of its head."""

    def __init__(self, *, called: bool) -> None:
        super().__init__(2)
        self.aux = nn.Linear(6, 2)
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        if self.called:
            self.aux(x.new_zeros(2, 6))
        return super().forward(x)


@pytest.mark.parametrize("called", [False, True])
def test_a_layer_that_does_not_return_the_logits_is_rejected_as_head(called):
    with pytest.raises(UserError, match=r"not return the output of its head 'aux' in eval"):
        wrapped(SpareHead(called=called))
    assert wrapped(SpareHead(called=called), head="fc").head == "fc"


def test_logits_that_are_changed_after_the_head_are_rejected():
    class Scaled(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mul_(2)

    with pytest.raises(UserError, match="not return the output of its head 'fc'"):
        wrapped(Scaled())


def test_nan_on_blank_images_is_accepted():
    class Normed(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / x.norm())

    assert wrapped(Normed()).head == "fc"


def test_a_head_can_be_named():
    backbone = wrapped(TwoLinear(), head="fc")
    assert backbone.head == "fc"
    assert backbone.module.unused.out_features == 9


def test_the_head_of_a_timm_network_is_found():
    assert wrap_network(timm.create_model("test_convnext"), num_outputs=2).head == "head.fc"


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (nn.Conv2d(3, 2, 3), {}, "Conv2d has no nn.Linear"),
        (nn.Linear(16, 16), {}, "Linear has no nn.Linear"),
        (conv_net(), {"head": "fcc"}, "unknown linear head 'fcc': choose from fc"),
        (conv_net(), {"head": "conv1"}, "unknown linear head 'conv1': choose from fc"),
        (
            TwoLinear(),
            {},
            r"a new head 'unused' returns \[2, 3\] in eval mode, not \[2, 2\]: .*head=",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(27, 4)),
            {},
            r"Sequential fails on images \[2, 3, 16, 16\] with a new head '1' \(.*mat",
        ),
        (
            timm.create_model("resnet18", in_chans=1),
            {"input_spec": SPEC},
            "ResNet fails on images",
        ),
    ],
)
def test_an_unsuitable_network_is_rejected(network, options, message):
    with pytest.raises(UserError, match=message):
        wrapped(network, **options)


class Auxiliary(ConvNet):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def test_a_network_with_other_outputs_in_train_mode_is_rejected():
    with pytest.raises(UserError, match=r"returns tuple in train mode.*head="):
        wrapped(Auxiliary())


def test_two_distilled_heads_are_rejected():
    with pytest.raises(UserError, match=r"fails on images .* with a new head 'head_dist'"):
        wrap_network(timm.create_model("deit_tiny_distilled_patch16_224"), num_outputs=2)


def test_a_network_that_cannot_be_copied_is_rejected():
    network = conv_net()
    network.cache = network.fc.weight * 2  # not a leaf
    with pytest.raises(UserError, match=r"ConvNet cannot be copied \(.*hooks"):
        wrapped(network)


def test_batch_norm_statistics_are_not_touched_by_trying():
    network = conv_net()
    state = wrapped(network).module.state_dict()
    for name in ("norm1.running_mean", "norm1.num_batches_tracked"):
        assert torch.equal(state[name], network.state_dict()[name])


def test_attention_loses_its_dropout():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True)
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.fc(self.attention(tokens, tokens, tokens)[0].mean(dim=1))

    module = wrapped(Attending()).module
    inputs = torch.rand(2, 3, 16, 16)
    assert torch.allclose(module.train()(inputs), module.eval()(inputs), atol=1e-6)

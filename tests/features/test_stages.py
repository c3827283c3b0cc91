"""Which taps `"auto"` chooses, per architecture."""

from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import Taps
from tests import reference
from tests.networks import hooks_of


@dataclass(frozen=True)
class Expected:
    """Taps -> channels x height x width (maps), or tokens x channels, of an image of this size."""

    image: tuple[int, int]
    taps: dict[str, tuple[int, ...]]
    channels_last: bool = False


def vit_blocks(names: str, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {names.format(i): shape for i in (2, 5, 8, 11)}


RESNET = {
    "layer1": (256, 16, 24),
    "layer2": (512, 8, 12),
    "layer3": (1024, 4, 6),
    "layer4": (2048, 2, 3),
}
CONVNEXT = {
    "stages.0": (96, 16, 24),
    "stages.1": (192, 8, 12),
    "stages.2": (384, 4, 6),
    "stages.3": (768, 2, 3),
}
SWIN_SHAPES = ((56, 56, 96), (28, 28, 192), (14, 14, 384))

# A name alone is timm's.
TABLE = {
    "resnet50": Expected((64, 96), RESNET),
    "resnet101": Expected((64, 96), RESNET),
    "convnext_tiny": Expected((64, 96), CONVNEXT),
    "efficientnet_b0": Expected(
        (64, 96),
        {
            "blocks.1": (24, 16, 24),
            "blocks.2": (40, 8, 12),
            "blocks.4": (112, 4, 6),
            "blocks.6": (320, 2, 3),
        },
    ),
    "mobilenetv3_large_100": Expected(
        (64, 96),
        {
            "blocks.1": (24, 16, 24),
            "blocks.2": (40, 8, 12),
            "blocks.4": (112, 4, 6),
            "blocks.6": (960, 2, 3),
        },
    ),
    "vit_small_patch16_224": Expected((224, 224), vit_blocks("blocks.{}", (197, 384))),
    "swin_tiny_patch4_window7_224": Expected(
        (224, 224),
        dict(zip(("layers.0", "layers.1", "layers.2"), SWIN_SHAPES, strict=True))
        | {"layers.3": (7, 7, 768)},
        channels_last=True,
    ),
    "inception_v3": Expected(
        (128, 160),
        {
            "Conv2d_4a_3x3": (192, 28, 36),
            "Mixed_5d": (288, 13, 17),
            "Mixed_6e": (768, 6, 8),
            "Mixed_7c": (2048, 2, 3),
        },
    ),
    "densenet121": Expected(
        (64, 96),
        {
            "features.denseblock1": (256, 16, 24),
            "features.denseblock2": (512, 8, 12),
            "features.denseblock3": (1024, 4, 6),
            "features.norm5": (1024, 2, 3),
        },
    ),
    "regnety_016": Expected(
        (64, 96),
        {"s1": (48, 16, 24), "s2": (120, 8, 12), "s3": (336, 4, 6), "s4": (888, 2, 3)},
    ),
    "torchvision/resnet50": Expected((64, 96), RESNET),
    "torchvision/vgg16": Expected(
        (64, 96),
        {
            "features.8": (128, 32, 48),
            "features.15": (256, 16, 24),
            "features.22": (512, 8, 12),
            "features.29": (512, 4, 6),
        },
    ),
    "torchvision/mobilenet_v2": Expected(
        (64, 96),
        {
            "features.3": (24, 16, 24),
            "features.6": (32, 8, 12),
            "features.13": (96, 4, 6),
            "features": (1280, 2, 3),
        },
    ),
    "torchvision/vit_b_16": Expected(
        (224, 224), vit_blocks("encoder.layers.encoder_layer_{}", (197, 768))
    ),
    # Its windows and relative positions have resolutions of their own, which are no stages.
    "torchvision/swin_v2_t": Expected(
        (224, 224),
        dict(zip(("features.1", "features.3", "features.5"), SWIN_SHAPES, strict=True))
        | {"permute": (768, 7, 7)},
        channels_last=True,
    ),
}
SLOW = {"torchvision/vit_b_16"}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, model = name.rpartition("/")
    if library == "torchvision":
        return torchvision.models.get_model(model, weights=None).eval()
    return timm.create_model(model, pretrained=False).eval()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TABLE]
)
def test_auto_taps(name):
    expected = TABLE[name]
    net = network(name).train()
    flags = [module.training for module in net.modules()]
    buffers = {key: buffer.clone() for key, buffer in net.named_buffers()}
    assert auto_taps(net) == tuple(expected.taps)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in net.named_buffers())
    assert hooks_of(net) == 0

    net.eval()
    x = torch.randn(1, 3, *expected.image)
    with torch.no_grad():
        logits, outputs = reference.hooked(net, tuple(expected.taps), x)
        with Taps(net) as taps:
            assert torch.equal(net(x), logits)
    for tap, output in taps.outputs().items():
        assert output.shape == (1, *expected.taps[tap])
        assert torch.equal(output, outputs[tap])
        last = output.ndim == 3 or (expected.channels_last and tap != "permute")
        assert taps.channel_dims[tap] == (output.ndim - 1 if last else 1)


def test_the_chosen_taps_come_in_the_order_of_calls_without_feature_info():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU()
    )
    assert auto_taps(net) == ("1", "4")


def test_equal_blocks_are_taken_evenly_and_the_last_is_among_them():
    def blocks(count):
        return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(count)))

    assert auto_taps(blocks(12)) == ("2", "5", "8", "11")
    assert auto_taps(blocks(6)) == ("0", "2", "3", "5")
    assert auto_taps(blocks(4)) == ("0", "1", "2", "3")


def test_an_example_of_another_shape():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2))
    with pytest.raises(UserError, match=r"image.*channels.* taps"):
        auto_taps(net)
    assert hooks_of(net) == 0
    assert auto_taps(net, example=torch.zeros(1, 1, 20, 20)) == ("0", "1")


def test_a_network_for_other_inputs_is_an_error_that_asks_for_names():
    class Graphs(nn.Module):
        def forward(self, batch):
            return batch.nodes

    with pytest.raises(UserError, match=r"Graphs.* taps"):
        auto_taps(Graphs())
    with pytest.raises(UserError, match=r"no taps found in Linear"):
        auto_taps(nn.Linear(224, 1))


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet", "vit_tiny_patch16_224"])
def test_auto_taps_survive_timms_activation_checkpointing(name):
    """Checkpointing, timm calls the blocks of a stage one by one instead of the stage."""
    size = {"img_size": 32, "depth": 4} if name.startswith("vit") else {}
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, drop_path_rate=0.0, **size).eval()
    # timm starts the last batch norm of a block at zero: move it, or whole branches are dead.
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    x = torch.randn(2, 3, 32, 32)
    found = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        with Taps(net) as taps:
            for _ in range(2):
                loss = net(x).sum()
                outputs = taps.outputs()
                (loss + sum(o.square().mean() for o in outputs.values())).backward()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        found.append((loss.detach(), outputs, gradients))
    (plain_loss, plain, plain_gradients), (loss, outputs, gradients) = found
    assert torch.allclose(loss, plain_loss)
    assert outputs.keys() == plain.keys()
    assert len(outputs) == 4
    assert all(torch.allclose(outputs[tap], plain[tap], atol=1e-5) for tap in outputs)
    for expected, gradient in zip(plain_gradients, gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4)

"""Class maps against Grad-CAM by hand; the network is given back."""

import contextlib

import pytest
import timm
import torch
from torch import Tensor, nn

from delta_transfer.app.class_map import run_with_class_map
from delta_transfer.app.spatial_maps import as_spatial_map
from tests.app.asking import inputs_of, target_of
from tests.networks import conv_net, hooks_of
from tests.run_folders import CLASSES


@pytest.mark.parametrize("index", [0, 2])
def test_it_is_grad_cam(explainer, image, index):
    found = explainer.explain(image, name="x", class_index=index).class_map
    assert found.tap == "blocks.4"  # at 32 pixels the last tap has a single position
    network = target_of(explainer)
    kept: list[Tensor] = []
    handle = network.blocks[4].register_forward_hook(lambda m, i, output: kept.append(output))
    score = network(inputs_of(explainer, image))[0, index]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    weights = gradient[0].mean(dim=(1, 2))
    expected = torch.zeros(kept[0].shape[2:])
    for channel, weight in enumerate(weights):
        expected += weight * kept[0][0, channel].detach()
    expected = expected.clamp_min(0)
    assert expected.max() > 0
    torch.testing.assert_close(found.values, expected / expected.max(), rtol=1e-2, atol=1e-2)
    assert explainer.explain(image, name="x", class_index=index).class_name == CLASSES[index]


def test_tokens_are_laid_out_in_rows_and_blocks_without_gradient_left_out():
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=3, num_heads=3, num_classes=4
    ).eval()
    nn.init.normal_(network.head.weight)
    inputs = torch.randn(1, 3, 64, 64)
    taps = {"blocks.1": 2, "blocks.2": 2}
    found = run_with_class_map(network, inputs, taps=taps, head="head", class_index=1)
    assert found.class_map.tap == "blocks.1"  # in the last block the class token alone counts
    kept: list[Tensor] = []
    handle = network.blocks[1].register_forward_hook(lambda m, i, output: kept.append(output))
    (gradient,) = torch.autograd.grad(network(inputs)[0, 1], kept)
    handle.remove()
    tokens, weights = kept[0][0, 1:].detach(), gradient[0, 1:].mean(dim=0)
    expected = torch.stack(
        [torch.stack([(tokens[4 * y + x] * weights).sum() for x in range(4)]) for y in range(4)]
    ).clamp_min(0)
    torch.testing.assert_close(found.class_map.values, expected / expected.max())


def test_what_a_network_changes_in_place_is_seen_as_it_was():
    network = conv_net()
    inputs = torch.randn(1, 3, 16, 16)
    found = run_with_class_map(network, inputs, taps={"norm2": 1}, head="fc", class_index=1)
    with torch.no_grad():
        shortcut = network.pool(network.relu(network.norm1(network.conv1(inputs))))
        features = network.norm2(network.conv2(shortcut))
    torch.testing.assert_close(found.outputs["norm2"], features)
    features.requires_grad_()
    maps = network.conv3(torch.relu(features + shortcut))
    (gradient,) = torch.autograd.grad(network.fc(maps.mean(dim=(2, 3)))[0, 1], features)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].clamp_min(0)
    assert expected.max() > 0
    torch.testing.assert_close(found.class_map.values, (expected / expected.max()).detach())


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_given_back(fails):
    network = conv_net().train()
    network.norm1.eval()
    network.conv1.weight.requires_grad_(False)
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in network.modules()]
    inputs = torch.randn(1, 5 if fails else 3, 16, 16)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        run_with_class_map(network, inputs, taps={"norm2": 1, "conv3": 1}, head="fc", class_index=0)
    assert hooks_of(network) == 0
    assert flags == [
        (m.training, [p.requires_grad for p in m.parameters()]) for m in network.modules()
    ]
    assert all(p.grad is None for p in network.parameters())


def test_there_is_none_where_nothing_speaks_for_the_class_or_there_are_no_positions():
    network = conv_net()
    nn.init.zeros_(network.fc.weight)
    inputs = torch.randn(1, 3, 16, 16)
    found = run_with_class_map(network, inputs, taps={"norm2": 1}, head="fc", class_index=0)
    assert found.class_map is None
    rows = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 2))
    found = run_with_class_map(
        rows, torch.randn(1, 3, 4, 4), taps={"1": 1}, head="2", class_index=0
    )
    assert found.class_map is None
    assert found.head_input.shape == (4,)


class Aside(nn.Module):
    """Its last map is made, and not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.aside(x)
        return self.fc(x.square().mean(dim=(2, 3)))


def test_a_tap_that_the_answer_does_not_depend_on_is_left_out():
    torch.manual_seed(0)
    inputs, taps = torch.randn(1, 3, 16, 16), {"first": 1, "aside": 1}
    found = [
        run_with_class_map(Aside(), inputs, taps=taps, head="fc", class_index=i).class_map
        for i in (0, 1)
    ]
    assert {one.tap for one in found if one is not None} == {"first"}


@pytest.mark.parametrize(
    ("shape", "dim", "places"),
    [
        ((1, 8, 7, 5), 1, (7, 5)),
        ((1, 7, 5, 8), 3, (7, 5)),
        ((1, 49, 8), 2, (7, 7)),
        ((1, 50, 8), 2, (7, 7)),
        ((1, 261, 8), 2, (16, 16)),
        ((1, 8, 50), 1, (7, 7)),
        ((1, 8, 1, 1), 1, None),
        ((1, 3, 8), 2, None),
        ((1, 60, 8), 2, None),
        ((1, 8), 1, None),
    ],
)
def test_positions(shape, dim, places):
    found = as_spatial_map(torch.zeros(shape), dim)
    assert (None if found is None else tuple(found.shape)) == (places and (1, 8, *places))

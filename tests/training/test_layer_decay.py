import pytest
import timm
import torch
import torchvision
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.training.optimizers import layer_lr_scales
from tests.training.test_module import expected_factor, fine_tuning

IMAGE = torch.zeros(1, 3, 32, 32)


def test_the_layers_of_resnet18_are_its_blocks():
    network = timm.create_model("resnet18", num_classes=3)
    scales = layer_lr_scales(network, head="fc", factor=0.5, example=IMAGE)
    above = {"layer4.1": 1, "layer4.0": 2, "layer3.1": 3, "layer3.0": 4, "layer2.1": 5}
    above |= {"layer2.0": 6, "layer1.1": 7, "layer1.0": 8, "conv1": 9, "bn1": 9}
    for name, _ in network.named_parameters():
        if not name.startswith("fc."):
            own = next(n for block, n in above.items() if name.startswith(f"{block}."))
            assert scales.pop(name) == 0.5**own
    assert not scales


def test_the_layers_of_a_vision_transformer_are_its_blocks():
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    scales = layer_lr_scales(network, head="head", factor=0.75, example=IMAGE)
    for name, scale in scales.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            assert scale == 0.75 ** (12 - int(rest.split(".")[0]))
        else:
            assert scale == (0.75 if first == "norm" else 0.75**13)
    assert scales["cls_token"] == scales["pos_embed"] == scales["patch_embed.proj.bias"]
    assert len(scales) == sum(1 for _ in network.parameters()) - 2


def test_the_layers_of_others_are_their_stages():
    network = torchvision.models.resnet18(num_classes=3)
    image = torch.zeros(1, 3, 64, 64)
    scales = layer_lr_scales(network, head="fc", factor=0.5, example=image)
    above = {"layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "bn1": 4, "conv1": 4}
    for name, _ in network.named_parameters():
        if not name.startswith("fc."):
            assert scales.pop(name) == 0.5 ** above[name.split(".")[0]]
    assert not scales


class Staged(nn.Module):
    """Two stages, defined in the order in which they run or not, and a norm before the head."""

    def __init__(self, *, in_order: bool) -> None:
        super().__init__()
        stages = {"early": nn.Conv2d(3, 4, 3, stride=2), "late": nn.Conv2d(4, 8, 3, stride=2)}
        for name in sorted(stages, reverse=not in_order):
            self.add_module(name, stages[name])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.late(self.early(x)).mean(dim=(2, 3))))


def test_what_comes_after_the_last_stage_learns_as_it_does():
    scales = layer_lr_scales(Staged(in_order=True), head="head", factor=0.5, example=IMAGE)
    assert {name.split(".")[0]: scale for name, scale in scales.items()} == {
        "early": 0.25,
        "late": 0.5,
        "norm": 0.5,
    }


def test_a_network_whose_layers_are_not_known_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(UserError, match="`layer_decay`: the layers of Sequential are unknown"):
        layer_lr_scales(flat, head="1", factor=0.5, example=IMAGE)
    with pytest.raises(UserError, match="the layers of Staged are unknown"):
        layer_lr_scales(Staged(in_order=False), head="head", factor=0.5, example=IMAGE)


def test_the_optimiser_and_the_schedule_go_by_them():
    scales = {"conv1.weight": 0.25, "conv2.weight": 0.5, "conv2.bias": 0.5}
    module = fine_tuning(lr_scales=scales, schedule="cosine")
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    for step in range(20):
        factor = expected_factor(step, 20, "cosine")
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in module.network.named_parameters():
            peak = 0.2 if name.startswith("fc.") else 0.1 * scales.get(name, 1.0)
            assert rates[id(parameter)] == pytest.approx(peak * factor)
        optimizer.step()
        schedule.step()

import math
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from delta_transfer.attention import estimate_attention
from delta_transfer.attention.official import (
    OFFICIAL_TAPS,
    official_head,
    official_image_size,
    official_taps,
)
from delta_transfer.errors import UserError
from delta_transfer.features.probe import collect_features
from delta_transfer.features.taps import Taps, resolve_taps
from tests.networks import conv_net

WIDTHS = {
    "resnet50": [256, 512, 1024, 2048],
    "resnet101": [256, 512, 1024, 2048],
    "inception_v3": [64, 192, 288, 768],
}


# --------------------------------------------------------------------------------------- taps


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("resnet50", "resnet50"),
        ("resnet50.tv_in1k", "resnet50"),
        ("timm/resnet50.a1_in1k", "resnet50"),
        ("torchvision/resnet50", "resnet50"),
        ("hf-hub:timm/resnet50.tv_in1k", "resnet50"),
        ("tv_resnet50", "resnet50"),
        ("gluon_resnet50_v1b", "resnet50"),
        ("swsl_resnet50", "resnet50"),
        ("resnet101", "resnet101"),
        ("torchvision/resnet101", "resnet101"),
        ("tv_resnet101", "resnet101"),
        ("inception_v3", "inception_v3"),
        ("inception_v3.tv_in1k", "inception_v3"),
        ("torchvision/inception_v3", "inception_v3"),
        ("tf_inception_v3", "inception_v3"),
        ("adv_inception_v3", "inception_v3"),
    ],
)
def test_a_network_is_known_by_any_of_its_names(name, architecture):
    assert official_taps(name) == OFFICIAL_TAPS[architecture]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet152",
        "resnet50d",
        "gluon_resnet50_v1c",
        "wide_resnet50_2",
        "seresnet50",
        "legacy_seresnet101",
        "torchvision/inception_v4",
        "pypi/efficientnet_lite0",
        "",
    ],
)
def test_any_other_network_is_refused_with_what_there_is(name):
    """Defect 5: a network that does not fit is not tapped somewhere else instead."""
    with pytest.raises(UserError) as caught:
        official_taps(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "only for resnet50, resnet101, inception_v3" in message
    assert "`taps`" in message


def network(library: str, architecture: str) -> nn.Module:
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(architecture, pretrained=False)
        options = {"init_weights": False} if architecture == "inception_v3" else {}
        return torchvision.models.get_model(architecture, weights=None, **options)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("architecture", OFFICIAL_TAPS)
def test_the_taps_are_there_and_have_the_widths_that_they_should(library, architecture):
    net = network(library, architecture).eval()
    taps = official_taps(architecture)
    assert resolve_taps(net, taps) == taps
    side = 299 if architecture == "inception_v3" else 224
    with Taps(net, taps) as recorder:
        outputs = recorder.record(torch.zeros(1, 3, side, side, device="meta"))
    assert [output.shape[1] for output in outputs.values()] == WIDTHS[architecture]
    assert set(recorder.channel_dims.values()) == {1}


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("architecture", ["resnet50", "resnet101"])
def test_a_resnet_is_tapped_at_the_raw_convolution_of_each_stages_last_block(library, architecture):
    net = network(library, architecture)
    for stage, tap in enumerate(official_taps(architecture), start=1):
        assert type(net.get_submodule(tap)) is nn.Conv2d  # its batch norm is a module of its own
        last = len(net.get_submodule(f"layer{stage}")) - 1
        assert tap == f"layer{stage}.{last}.conv3"


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_what_is_recorded_comes_before_batch_norm_sum_and_relu(library):
    make = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[library]
    torch.manual_seed(0)
    net = make("resnet50").eval()
    norm = net.layer1[2].bn3
    nn.init.constant_(norm.weight, 3.0)
    nn.init.constant_(norm.bias, -1.0)
    seen = {}
    handles = [
        net.layer1[2].conv3.register_forward_pre_hook(lambda m, x: seen.update(given=x[0].clone())),
        norm.register_forward_pre_hook(lambda m, x: seen.update(next=x[0].clone())),
    ]
    with torch.no_grad(), Taps(net, official_taps("resnet50")) as recorder:
        net(torch.randn(2, 3, 32, 32))
        tapped = recorder.outputs()["layer1.2.conv3"]
    for handle in handles:
        handle.remove()
    weight = net.layer1[2].conv3.weight[:, :, 0, 0]
    by_hand = torch.einsum("oc,bchw->bohw", weight, seen["given"])
    torch.testing.assert_close(tapped, by_hand, rtol=1e-4, atol=1e-5)
    assert torch.equal(tapped, seen["next"])
    assert tapped.min() < 0


# --------------------------------------------------------------------------------------- head


def samples(count: int, width: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(count) % classes
    features = torch.randn(count, width, generator=generator)
    features[:, 0] += targets
    return features, targets


def slow_head(
    features: torch.Tensor, targets: torch.Tensor, classes: int, seed: int
) -> tuple[list[list[float]], list[float]]:
    """Momentum SGD on softmax regression, number by number."""
    count, width = features.shape
    x, y = features.double().tolist(), targets.tolist()
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(width)
    # PyTorch's linear layer: weight, then bias, uniform within 1/sqrt(F).
    weight = torch.empty(classes, width).uniform_(-bound, bound, generator=generator).tolist()
    bias = torch.empty(classes).uniform_(-bound, bound, generator=generator).tolist()
    rows = [[*weight[k], bias[k]] for k in range(classes)]
    speed = [[0.0] * (width + 1) for _ in range(classes)]
    for epoch in range(10):
        rate = 0.01 * 0.1 ** (epoch / 6)
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, 64):
            batch = order[start : start + 64]
            slope = [[1e-4 * value for value in row] for row in rows]
            for i in batch:
                inputs = [*x[i], 1.0]
                powers = [
                    math.exp(sum(a * b for a, b in zip(row, inputs, strict=True))) for row in rows
                ]
                for k in range(classes):
                    error = powers[k] / sum(powers) - (k == y[i])
                    for f in range(width + 1):
                        slope[k][f] += error * inputs[f] / len(batch)
            for k in range(classes):
                for f in range(width + 1):
                    speed[k][f] = 0.9 * speed[k][f] + slope[k][f]
                    rows[k][f] -= rate * speed[k][f]
    return [row[:-1] for row in rows], [row[-1] for row in rows]


@pytest.mark.parametrize("count", [20, 64, 150], ids=["one short batch", "one batch", "three"])
def test_the_head_is_that_of_the_reference_number_by_number(count):
    features, targets = samples(count)
    found = official_head(features, targets, num_outputs=3, seed=5)
    weight, bias = slow_head(features, targets, classes=3, seed=5)
    torch.testing.assert_close(found.weight, torch.tensor(weight), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.bias, torch.tensor(bias), rtol=1e-4, atol=1e-6)
    assert found.regularization == 1e-4
    assert (found.weight.dtype, found.weight.requires_grad) == (torch.float32, False)


def test_the_head_starts_as_pytorchs_linear_layer(monkeypatch):
    monkeypatch.setattr("delta_transfer.attention.official.EPOCHS", 0)
    features, targets = samples(10)
    found = official_head(features, targets, num_outputs=3, seed=5)
    torch.manual_seed(5)
    layer = nn.Linear(5, 3)
    assert torch.equal(found.weight, layer.weight)
    assert torch.equal(found.bias, layer.bias)


def test_the_seed_decides_and_the_global_random_state_stays():
    features, targets = samples(70)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        official_head(features, targets, num_outputs=3, seed=seed)
        for seed in (2**64 - 1, 2**64 - 1, 8)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, again.weight)
    assert not torch.allclose(first.weight, other.weight)


def test_of_several_views_the_first_counts():
    features, targets = samples(30)
    views = torch.stack([features, torch.full_like(features, math.nan)], dim=1)
    one = official_head(features, targets, num_outputs=3, seed=0)
    two = official_head(views, targets, num_outputs=3, seed=0)
    assert torch.equal(one.weight, two.weight)


def test_it_trains_where_gradients_are_off_and_leaves_its_features_alone():
    features, targets = samples(30)
    expected = official_head(features, targets, num_outputs=3, seed=0)
    kept = features.clone().requires_grad_()
    with torch.no_grad():
        found = official_head(kept, targets, num_outputs=3, seed=0)
    assert torch.equal(found.weight, expected.weight)
    assert kept.grad is None
    half = official_head(features.bfloat16(), targets, num_outputs=3, seed=0)
    assert half.weight.dtype == torch.float32


def test_the_network_behind_the_features_stays_as_it_was():
    """Defect 2: batch-norm statistics drift if the head is trained inside the network."""
    net = conv_net().train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 8, 8, generator=generator)
    loader = list(zip(images.split(4), (torch.arange(12) % 3).split(4), strict=True))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    head = official_head(*collect_features(net, loader), num_outputs=3, seed=0)
    found = estimate_attention(net, loader, probe=head, taps=["conv3"], estimator="exact")
    assert found.attention["conv3"].sum().item() == pytest.approx(1)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert net.training


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (torch.zeros(4), torch.zeros(4).long(), r"features must be \[N, F\] or \[N, V, F\]"),
        (torch.zeros(0, 3), torch.zeros(0).long(), r"N > 0, got \(0, 3\)"),
        (torch.zeros(4, 3), torch.zeros(5).long(), r"class indices \[4\], got torch.int64 \(5,\)"),
        (torch.zeros(4, 3), torch.zeros(4), r"class indices \[4\], got torch.float32 \(4,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 2]), r"0 to 1 \(num_outputs=2\), got 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-1, 1]), "got -1 to 1"),
    ],
)
def test_bad_arguments_are_named(features, targets, message):
    with pytest.raises(ValueError, match=message):
        official_head(features, targets, num_outputs=2, seed=0)


# --------------------------------------------------------------------------------------- page


def test_the_pages_example_runs_and_trains(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "methods" / "delta.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert example.count('estimator="exact"') == 1
    create = timm.create_model

    def random(name: str, *, pretrained: bool, num_classes: int = 10) -> nn.Module:
        assert pretrained
        torch.manual_seed(0)
        return create(name, pretrained=False, num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", random)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)
    names = {"eval_dataloader": [(images, labels)], "train_loader": [(images, labels)]}

    # The exact scores of 3,840 channels would take minutes.
    exec(example.replace('estimator="exact"', 'estimator="gradient"'), names)

    assert names["attention"].taps == OFFICIAL_TAPS["resnet50"]
    assert names["loss"].item() > 0
    source, target = names["source"], names["target"]
    assert not torch.equal(source.layer4[2].conv3.weight, target.layer4[2].conv3.weight)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("inception_v3.tv_in1k", 299),
        ("torchvision/inception_v3", 299),
        ("resnet50", 224),
        ("inception_next_tiny", 224),
        ("local-dir:/data/inception_v3_runs/resnet50", 224),
    ],
)
def test_images_have_the_authors_size(name, size):
    assert official_image_size(name) == size

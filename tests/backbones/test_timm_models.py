import copy
import dataclasses
import functools

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from delta_transfer.backbones.registry import load_backbone
from delta_transfer.errors import UserError


def untrained(name: str, *, image_size: int | None = None):
    return load_backbone(name, num_outputs=5, image_size=image_size, pretrained=False)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "resnet18.a1_in1k"])
def test_a_timm_name_gives_the_network_with_a_head_for_the_task(name):
    backbone = untrained(name)
    assert (backbone.head, backbone.architecture, backbone.model_args) == ("fc", "resnet18", {})
    assert backbone.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_images_are_prepared_as_the_weights_want_them():
    spec = untrained("resnet18.a1_in1k").input_spec
    wanted = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert (spec.mean, spec.std) == (wanted.mean, wanted.std)
    assert (spec.crop_pct, spec.interpolation) == (wanted.crop_pct, wanted.interpolation)
    assert spec.size == wanted.input_size[-1]
    assert untrained("resnet18", image_size=96).input_spec.size == 96


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_every_head_starts_as_a_fresh_linear_layer(name):
    """timm initializes some heads with much larger values, or zeros."""
    backbone = untrained(name)
    head = backbone.module.get_submodule(backbone.head)
    bound = head.in_features**-0.5
    for values in (head.weight, head.bias):
        assert bound / 2 < values.abs().max() <= bound


def test_the_same_random_state_gives_the_same_head():
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        backbone = untrained("resnet18")
        heads.append(backbone.module.get_submodule("fc").weight)
    assert torch.equal(*heads)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_in_train_mode_only_batch_norm_differs_from_eval_mode(monkeypatch, name):
    """Stochastic depth is zero: feature distances must not measure noise."""
    noisy = functools.partial(timm.create_model, drop_path_rate=0.5)
    monkeypatch.setattr(timm, "create_model", noisy)
    backbone = untrained(name)
    model, inputs = (
        backbone.module,
        torch.rand(2, 3, backbone.input_spec.size, backbone.input_spec.size),
    )
    reference = copy.deepcopy(model).eval()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        assert torch.allclose(model(inputs), reference(inputs), atol=1e-5)


def test_a_transformer_is_created_for_the_image_size():
    backbone = untrained("vit_tiny_patch16_224", image_size=64)
    assert backbone.model_args == {"img_size": 64}
    assert backbone.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"unknown model 'resnet5O': did you mean .*resnet50"),
        ("resnet50.a1_in2k", r"unknown weights of model 'resnet50' 'a1_in2k': .*a1_in1k"),
        (
            "torchvison/resnet50",
            "unknown model 'torchvison/resnet50': it must begin with one of timm/, torchvision/, "
            "hf-hub:, local-dir:, pypi/; .* hf-hub:ORG/NAME",
        ),
        ("hf_hub:org/name", "unknown model 'hf_hub:org/name': it must begin with"),
        ("", "unknown model ''"),
    ],
)
def test_an_unknown_name_is_rejected_with_the_nearest_ones(name, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, num_outputs=2)


def test_an_architecture_without_weights_is_rejected():
    name = next(m for m in timm.list_models() if not timm.list_pretrained(f"{m}.*"))
    with pytest.raises(UserError, match="no pretrained weights"):
        load_backbone(name, num_outputs=2)


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("offline"), ConnectionError("refused"), TimeoutError()]
)
def test_a_failed_download_is_explained(monkeypatch, error):
    def create_model(name: str, **options: object) -> nn.Module:
        assert options["pretrained"]
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match=r"'resnet18' could not be downloaded.*pypi/efficientnet"):
        load_backbone("resnet18", num_outputs=2)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("twins_svt_small", 50, "cannot be created for these images"),
        ("inception_v3", 50, "does not accept images of 50 pixels .*image_size"),
    ],
)
def test_an_unsuitable_image_size_is_rejected(name, size, message):
    with pytest.raises(UserError, match=message):
        untrained(name, image_size=size)


def test_an_image_size_leaves_the_network_in_train_mode_and_unchanged():
    plain, sized = untrained("resnet18").module, untrained("resnet18", image_size=64).module
    assert all(module.training for module in sized.modules())
    for name in ("bn1.running_mean", "bn1.num_batches_tracked"):
        assert torch.equal(sized.state_dict()[name], plain.state_dict()[name])


def test_a_head_that_is_not_linear_is_rejected(monkeypatch):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, 1, 1)

        def get_classifier(self) -> nn.Module:
            return self.head

    monkeypatch.setattr(timm, "create_model", lambda name, **options: Odd())
    with pytest.raises(UserError, match="the head of model 'resnet18' is a Conv2d"):
        untrained("resnet18")


def test_two_heads_are_rejected():
    with pytest.raises(UserError, match=r"head of model 'deit_tiny_distilled.*' is a tuple"):
        untrained("deit_tiny_distilled_patch16_224")


def test_a_network_for_one_size_stores_it_in_model_args():
    assert untrained("test_vit").model_args == {"img_size": 160}


@pytest.mark.parametrize(
    ("name", "mode"),
    [("test_vit", "center"), ("convnext_tiny.in12k_ft_in1k_384", "squash")],
)
def test_another_crop_than_the_centre_is_noted(name, mode):
    assert timm.get_pretrained_cfg(name).crop_mode == mode
    with torch.device("meta"):
        notes = untrained(name).notes
    if mode == "center":
        assert notes == ()
    else:
        assert notes == (
            f"images are cropped at the centre; timm evaluated the weights of {name} with "
            "crop_mode squash",
        )


@pytest.mark.parametrize("name", ["volo_d4_448", "volo_d5_448", "volo_d5_512"])
def test_a_margin_around_the_images_is_left_out_and_noted(name):
    assert timm.get_pretrained_cfg(name).crop_pct == 1.15
    with torch.device("meta"):
        backbone = untrained(name)
    assert backbone.input_spec.crop_pct == 1
    assert backbone.notes == (
        f"images fill the crop; timm evaluated the weights of {name} with a margin around them "
        "(crop_pct 1.15)",
    )


@pytest.mark.parametrize("interpolation", ["lanczos", "random"])
def test_an_unsupported_interpolation_is_noted(monkeypatch, interpolation):
    plain = timm.create_model

    def odd(name: str, **options: object) -> nn.Module:
        module = plain(name, **options)
        module.pretrained_cfg["interpolation"] = interpolation
        return module

    monkeypatch.setattr(timm, "create_model", odd)
    backbone = untrained("test_resnet")
    assert backbone.input_spec.interpolation == "bicubic"
    wanted = f"images are resized with bicubic instead of {interpolation} interpolation"
    assert backbone.notes == (wanted,)


@pytest.mark.parametrize("error", [RuntimeError("bad"), SafetensorError("short"), EOFError()])
def test_weights_that_cannot_be_loaded_are_explained(monkeypatch, error):
    def create_model(name: str, **options: object) -> nn.Module:
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match=r"'resnet18' cannot be loaded \(.*\): delete them"):
        load_backbone("resnet18", num_outputs=2)


@pytest.mark.parametrize("classes", [7, 0])
def test_the_pretrained_classifier_is_returned_beside_the_new_head(monkeypatch, tmp_path, classes):
    """Some weights have no classifier."""
    theirs = timm.create_model("test_resnet", num_classes=classes)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    config = dataclasses.replace(
        timm.get_pretrained_cfg("test_resnet"),
        file=str(tmp_path / "weights.pth"),
        num_classes=classes,
    )
    made = functools.partial(timm.create_model, pretrained_cfg=config)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    monkeypatch.setattr(timm, "create_model", made)
    backbone = load_backbone("test_resnet", num_outputs=5)
    assert backbone.module.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 5)
    assert backbone.module.num_classes == 5
    own = backbone.module.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(own[name], tensor)
    if classes:
        assert torch.equal(backbone.classifier.weight, theirs.fc.weight)
        assert torch.equal(backbone.classifier.bias, theirs.fc.bias)
    else:
        assert backbone.classifier is None
    assert untrained("test_resnet").classifier is None

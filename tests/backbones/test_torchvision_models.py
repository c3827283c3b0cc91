import math
from urllib.error import HTTPError, URLError

import pytest
import torch
import torchvision
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from delta_transfer.backbones import torchvision_models
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.data.images.augment import eval_transform
from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps

NAMES = torchvision.models.list_models(module=torchvision.models)


def untrained(name: str, *, image_size: int | None = None):
    return load_backbone(
        f"torchvision/{name}", num_outputs=5, image_size=image_size, pretrained=False
    )


def published(name: str, **options: object) -> dict[str, Tensor]:
    """Return a random state dict in the form of a download of torchvision."""
    state = torchvision.models.get_model(name, weights=None, **options).state_dict()
    return {key: torch.rand_like(t) if t.is_floating_point() else t for key, t in state.items()}


@pytest.fixture
def downloads(monkeypatch):
    """Replace downloads of torchvision by a state dict; return the list of URLs."""
    asked: list[str] = []

    def found(state: dict[str, Tensor]) -> list[str]:
        def get_state_dict(self: WeightsEnum, **options: object) -> dict[str, Tensor]:
            assert options["weights_only"]
            assert options["check_hash"]
            asked.append(self.url)
            return dict(state)

        monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
        return asked

    return found


# One network of each family: its head, and its taps.
FAMILIES = {
    "resnet18": ("fc", "layer1 layer2 layer3 layer4"),
    "resnext50_32x4d": ("fc", "layer1 layer2 layer3 layer4"),
    "wide_resnet50_2": ("fc", "layer1 layer2 layer3 layer4"),
    "densenet121": (
        "classifier",
        "features.denseblock1 features.denseblock2 features.denseblock3 features",
    ),
    "efficientnet_b0": ("classifier.1", "features.2 features.3 features.5 features"),
    "convnext_tiny": ("classifier.2", "features.1 features.3 features.5 features"),
    "mobilenet_v2": ("classifier.1", "features.3 features.6 features.13 features"),
    "mobilenet_v3_small": ("classifier.3", "features.1 features.3 features.8 features"),
    "vgg11": ("classifier.6", "features.4 features.9 features.14 features.19"),
    "alexnet": ("classifier.6", "features.1 features.4 features.11"),
    "googlenet": ("fc", "conv3 inception3b inception4e inception5b"),
    "inception_v3": ("fc", "Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c"),
    "mnasnet0_5": ("classifier.1", "layers.8 layers.9 layers.11 layers"),
    "shufflenet_v2_x0_5": ("fc", "conv1 stage2 stage3 conv5"),
    "swin_t": ("head", "features.1 features.3 features.5 permute"),
    "swin_v2_t": ("head", "features.1 features.3 features.5 permute"),
    "vit_b_32": (
        "heads.head",
        " ".join(f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)),
    ),
    "maxvit_t": ("classifier.5", "blocks.0 blocks.1 blocks.2 blocks.3"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_a_head_and_taps_and_gives_a_tensor_in_train_mode(name):
    head, taps = FAMILIES[name]
    with torch.device("meta"):  # shapes alone: some of these networks are large
        backbone = untrained(name)
        size = backbone.input_spec.size
        assert backbone.head == head
        assert auto_taps(backbone.module) == tuple(taps.split())
        output = backbone.module.train()(torch.zeros(2, 3, size, size))
    assert output.shape == (2, 5)
    linear = backbone.module.get_submodule(head)
    assert (type(linear), linear.out_features) == (nn.Linear, 5)
    assert linear.bias is not None
    assert (backbone.architecture, backbone.model_args) == (f"torchvision/{name}", {})


def test_regnet_too():
    backbone = untrained("regnet_y_400mf")  # it cannot be created on the meta device
    assert backbone.head == "fc"
    blocks = [f"trunk_output.block{i}" for i in (1, 2, 3)]
    assert auto_taps(backbone.module) == (*blocks, "trunk_output")
    assert backbone.module(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_a_head_that_is_a_convolution_is_rejected(name):
    with pytest.raises(
        UserError, match=f"head of model 'torchvision/{name}' is not one linear layer"
    ):
        untrained(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "unknown model 'torchvision/resnet5O': did you mean .*torchvision/resnet50"),
        ("fasterrcnn_resnet50_fpn", "unknown model 'torchvision/fasterrcnn"),
        ("", "unknown model 'torchvision/'"),
        (
            "resnet50.IMAGENET1K_V3",
            "unknown weights of model 'resnet50' 'IMAGENET1K_V3': choose from IMAGENET1K_V1, "
            "IMAGENET1K_V2, DEFAULT",
        ),
    ],
)
def test_an_unknown_name_is_rejected_with_the_nearest_ones(name, message):
    with pytest.raises(UserError, match=message):
        load_backbone(f"torchvision/{name}", num_outputs=2)


def test_images_are_prepared_as_every_weights_want_them():
    own_range = ("googlenet", "inception_v3")
    for name in NAMES:
        for weights in torchvision.models.get_model_weights(name):
            preset = weights.transforms()
            spec = torchvision_models._input_spec(name, weights, None)
            assert (spec.size, spec.interpolation) == (
                preset.crop_size[0],
                preset.interpolation.value,
            )
            assert math.floor(spec.size / spec.crop_pct) == preset.resize_size[0]
            if name not in own_range:
                assert (list(spec.mean), list(spec.std)) == (preset.mean, preset.std)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_a_photograph_is_prepared_as_by_torchvision_itself(name):
    image = Image.fromarray(data.cat())
    with torch.device("meta"):
        spec = untrained(name).input_spec
    transform = eval_transform(
        size=spec.size,
        crop_pct=spec.crop_pct,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
    )
    wanted = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()(image)
    assert torch.allclose(transform(image), wanted, atol=1e-5)


def test_a_tag_chooses_weights_and_preparation(downloads):
    asked = downloads(published("mobilenet_v2"))
    for tag, file, crop_pct in (
        ("", "mobilenet_v2-7ebf99e0.pth", 224 / 232),
        (".DEFAULT", "mobilenet_v2-7ebf99e0.pth", 224 / 232),
        (".IMAGENET1K_V1", "mobilenet_v2-b0353104.pth", 224 / 256),
    ):
        backbone = load_backbone(f"torchvision/mobilenet_v2{tag}", num_outputs=2)
        assert asked[-1].endswith(file)
        assert backbone.input_spec.crop_pct == crop_pct
        assert backbone.architecture == "torchvision/mobilenet_v2"


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_all_weights_but_the_heads_arrive(downloads, name):
    state = published(name)
    downloads(state)
    backbone = load_backbone(f"torchvision/{name}", num_outputs=3)
    own = backbone.module.state_dict()
    assert own.keys() == state.keys()
    for key, tensor in own.items():
        if key.startswith(f"{backbone.head}."):
            assert tensor.shape[0] == 3
        else:
            assert torch.equal(tensor, state[key])
    assert backbone.notes == ()
    for key, tensor in backbone.classifier.state_dict().items():
        assert torch.equal(tensor, state[f"{backbone.head}.{key}"])


def test_without_weights_nothing_is_downloaded(monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    assert untrained("mobilenet_v3_small").classifier is None


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_outputs_are_off_and_images_normalised_once(downloads, name):
    """The logits must be those of torchvision's own network with ImageNet's normalisation."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(
        name, weights=None, aux_logits=True, transform_input=True, init_weights=False
    ).eval()
    downloads(theirs.state_dict())
    backbone = load_backbone(f"torchvision/{name}", num_outputs=1000)
    assert backbone.input_spec.mean == backbone.input_spec.std == (0.5, 0.5, 0.5)
    backbone.module.fc.load_state_dict(theirs.fc.state_dict())
    images = torch.rand(2, 3, 96, 96)
    preset = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    mean, std = torch.tensor(preset.mean)[:, None, None], torch.tensor(preset.std)[:, None, None]
    with torch.no_grad():
        wanted = theirs((images - mean) / std)
        found = backbone.module.eval()((images - 0.5) / 0.5)
        trained = backbone.module.train()(images)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert isinstance(trained, Tensor)
    assert trained.shape == (2, 1000)


@pytest.mark.parametrize("size", [None, 64])
def test_a_transformers_positions_are_resized(monkeypatch, downloads, size):
    def small(name: str, *, weights: None, num_classes: int, image_size: int) -> nn.Module:
        return torchvision.models.VisionTransformer(
            image_size, 32, 2, 2, 8, 16, num_classes=num_classes
        )

    monkeypatch.setattr(torchvision.models, "get_model", small)
    state = small("", weights=None, num_classes=1000, image_size=224).state_dict()
    downloads(state)
    backbone = load_backbone("torchvision/vit_b_32", num_outputs=2, image_size=size)
    positions = backbone.module.state_dict()["encoder.pos_embedding"]
    assert positions.shape == (1, 1 + ((size or 224) // 32) ** 2, 8)
    assert torch.equal(positions[:, 0], state["encoder.pos_embedding"][:, 0])
    assert torch.equal(
        backbone.module.state_dict()["encoder.ln.weight"], state["encoder.ln.weight"]
    )
    side = backbone.input_spec.size
    assert backbone.module(torch.zeros(1, 3, side, side)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_32", 50, "does not accept images of 50 pixels .*image_size"),
        ("maxvit_t", 50, "does not accept images of 50 pixels .*image_size"),
        ("inception_v3", 50, "does not accept images of 50 pixels .*image_size"),
    ],
)
def test_an_unsuitable_image_size_is_rejected(name, size, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        untrained(name, image_size=size)


def test_a_suitable_image_size_is_used():
    backbone = untrained("mobilenet_v3_small", image_size=64)
    assert backbone.input_spec.size == 64
    assert backbone.module.training


ERRORS = [
    URLError("no route"),
    HTTPError("https://x", 503, "Service Unavailable", None, None),
    TimeoutError("slow"),
    ConnectionResetError("gone"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failed_download_is_explained(monkeypatch, tmp_path, error):
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", fail)
    message = r"'torchvision/mobilenet_v3_small' could not be downloaded.*pypi/efficientnet"
    with pytest.raises(UserError, match=message):
        load_backbone("torchvision/mobilenet_v3_small", num_outputs=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Download:
    """A response of `urlopen` with other bytes, or one that is interrupted."""

    def __init__(self, content: bytes, *, error: BaseException | None = None) -> None:
        self.content, self.error = content, error

    def __enter__(self) -> "Download":
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def info(self) -> "Download":
        return self

    def get_all(self, name: str) -> list[str]:
        return ["1000000"]

    def read(self, size: int) -> bytes:
        content, self.content = self.content, b""
        if not content and self.error is not None:
            raise self.error
        return content


def test_a_download_of_other_bytes_is_rejected_and_not_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Download(b"half a file"))
    with pytest.raises(UserError, match=r"cannot be loaded \(invalid hash value .*try again"):
        load_backbone("torchvision/mobilenet_v3_small", num_outputs=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionResetError("gone")])
def test_an_interrupted_download_leaves_no_file(monkeypatch, tmp_path, error):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Download(b"half", error=error))
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        load_backbone("torchvision/mobilenet_v3_small", num_outputs=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04 half a file"])
def test_a_damaged_file_in_the_cache_is_named(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot be loaded .*: delete {file} and try again"):
        load_backbone("torchvision/mobilenet_v3_small", num_outputs=2)


def test_a_file_in_the_cache_is_not_downloaded_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir(parents=True)
    state = published("mobilenet_v3_small")
    torch.save(state, file)
    backbone = load_backbone("torchvision/mobilenet_v3_small", num_outputs=2)
    name = "features.0.0.weight"
    assert torch.equal(backbone.module.state_dict()[name], state[name])


def test_weights_that_are_not_finite_are_rejected(downloads):
    """vgg16.IMAGENET1K_FEATURES of torchvision has such layers, which were not trained."""
    state = published("mobilenet_v3_small")
    state["classifier.0.weight"].fill_(float("nan"))
    downloads(state)
    message = "MobileNet_V3_Small_Weights.*classifier.0.weight are not finite"
    with pytest.raises(UserError, match=message):
        load_backbone("torchvision/mobilenet_v3_small", num_outputs=2)

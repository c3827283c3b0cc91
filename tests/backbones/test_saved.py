import json
import math
import shutil
from pathlib import Path

import pytest
import timm
import timm.data
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.transforms import functional as F

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.custom import wrap_network
from delta_transfer.backbones.registry import load_backbone, load_graph_backbone
from delta_transfer.backbones.saved import load_model, save_model
from delta_transfer.errors import UserError
from delta_transfer.inference.predictor import Predictor
from tests.backbones.graph_inputs import molecules
from tests.networks import conv_net
from tests.run_folders import CLASSES


@pytest.fixture
def model(finished) -> Path:
    return finished.folder / "model"


@pytest.fixture
def copied(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


def bare(model: Path) -> nn.Module:
    """Load the network with timm alone."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=len(CLASSES))
    network.load_state_dict(load_file(model / "model.safetensors"))
    return network.eval()


def prepare(path: Path, config: dict) -> Tensor:
    """Prepare an image as in config.json, with torchvision alone."""
    cfg = config["pretrained_cfg"]
    image = Image.open(path).convert("RGB")
    size = cfg["input_size"][-1]
    resized = F.resize(
        image,
        math.floor(size / cfg["crop_pct"]),
        interpolation=F.InterpolationMode(cfg["interpolation"]),
    )
    cropped = F.to_tensor(F.center_crop(resized, [size, size]))
    return F.normalize(cropped, cfg["mean"], cfg["std"])


def test_config_names_classes_and_preparation(model):
    config = json.loads((model / "config.json").read_text())
    assert config["architecture"] == "tf_efficientnet_lite0"
    assert tuple(config["label_names"]) == CLASSES
    assert config["pretrained_cfg"] == {
        "input_size": [3, 32, 32],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 3,
        "classifier": "classifier",
    }
    with safe_open(model / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_bare_timm_and_predict_agree(model, finished, images):
    config = json.loads((model / "config.json").read_text())
    files = sorted((images / "test").rglob("*.png"))
    with torch.no_grad():
        logits = bare(model)(torch.stack([prepare(file, config) for file in files]))
    predictions = Predictor(finished.folder, device="cpu", num_workers=0).predict(files)
    for prediction, expected in zip(predictions, logits.softmax(dim=1), strict=True):
        found = torch.tensor([prediction.probabilities[name] for name in CLASSES])
        assert torch.allclose(found, expected, atol=1e-5)


def test_timm_loads_the_folder_by_itself(model):
    loaded = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    for name, tensor in bare(model).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.num_classes == len(CLASSES)
    # Its preprocessing too.
    cfg = json.loads((model / "config.json").read_text())["pretrained_cfg"]
    resolved = timm.data.resolve_data_config({}, model=loaded)
    for name in ("input_size", "crop_pct", "interpolation", "mean", "std"):
        found = resolved[name]
        assert (list(found) if isinstance(found, tuple) else found) == cfg[name]
    assert resolved["crop_mode"] == "center"


def test_timm_loads_it_for_another_task(model):
    loaded = timm.create_model(f"local-dir:{model}", pretrained=True, num_classes=5).eval()
    assert torch.equal(loaded.conv_stem.weight, bare(model).conv_stem.weight)
    assert loaded.classifier.out_features == 5


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 64),
        ("test_vit", None),  # made for 160 pixels, which only its config has
        ("convnext_atto", 64),
        ("resnet18", None),
    ],
)
def test_timm_networks_are_restored_as_saved(tmp_path, name, size):
    backbone = load_backbone(name, num_outputs=3, image_size=size, pretrained=False)
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    inputs = torch.randn(1, 3, backbone.input_spec.size, backbone.input_spec.size)
    expected = backbone.module.eval()(inputs)
    loaded, classes = load_model(tmp_path)
    assert classes == CLASSES
    assert (loaded.input_spec, loaded.head) == (backbone.input_spec, backbone.head)
    by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    for network in (loaded.module, by_timm):
        assert torch.allclose(network.eval()(inputs), expected, atol=1e-5)


def test_the_file_does_not_depend_on_the_memory_layout(tmp_path):
    backbone = load_backbone("resnet18", num_outputs=3, pretrained=False)
    for name in ("plain", "layout"):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, backbone, backbone.module, classes=CLASSES)
        backbone.module.to(memory_format=torch.channels_last)
    plain, layout = ((tmp_path / name / "model.safetensors") for name in ("plain", "layout"))
    assert plain.read_bytes() == layout.read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"no model in .*{name} is missing"):
        load_model(copied)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("model.safetensors", b"short"),
        ("model.safetensors", save({"x": torch.ones(1)})),
    ],
)
def test_a_damaged_file_is_rejected(copied, name, content):
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_model(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_names", ["one", "two"]),
        ("architecture", "efficientnet"),
        ("pretrained_cfg", {"input_size": [3, 32, 32]}),
    ],
)
def test_an_invalid_config_is_rejected(copied, key, value):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match="is damaged"):
        load_model(copied)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v3_small", 64),
        ("mnasnet0_5", None),  # its `load_state_dict` needs a version
        ("googlenet", 96),
        ("regnet_y_400mf.IMAGENET1K_V1", None),
    ],
)
def test_torchvision_networks_are_restored_as_saved(tmp_path, name, size):
    backbone = load_backbone(
        f"torchvision/{name}", num_outputs=3, image_size=size, pretrained=False
    )
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == f"torchvision/{name.partition('.')[0]}"
    loaded, classes = load_model(tmp_path)
    assert classes == CLASSES
    assert (loaded.input_spec, loaded.head) == (backbone.input_spec, backbone.head)
    assert loaded.architecture == backbone.architecture
    inputs = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = backbone.module.eval()(inputs)
        assert torch.equal(loaded.module.eval()(inputs), expected)


def test_a_torchvision_transformer_keeps_its_image_size(tmp_path, monkeypatch):
    def small(name: str, *, weights: None, num_classes: int, image_size: int) -> nn.Module:
        return torchvision.models.VisionTransformer(
            image_size, 32, 2, 2, 8, 16, num_classes=num_classes
        )

    monkeypatch.setattr(torchvision.models, "get_model", small)
    backbone = load_backbone("torchvision/vit_b_32", num_outputs=3, image_size=64, pretrained=False)
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    loaded, _ = load_model(tmp_path)
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)


def test_a_torchvision_folder_as_model_names_the_right_options(tmp_path):
    name = "torchvision/shufflenet_v2_x0_5"
    backbone = load_backbone(name, num_outputs=3, pretrained=False)
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    with pytest.raises(UserError, match=f"use `model={name}` and `weights={tmp_path}/model.safe"):
        load_backbone(f"local-dir:{tmp_path}", num_outputs=2)
    again = load_backbone(name, num_outputs=2, weights=tmp_path / "model.safetensors")
    own = again.module.state_dict()
    assert torch.equal(own["conv1.0.weight"], backbone.module.state_dict()["conv1.0.weight"])


@pytest.fixture
def custom(tmp_path) -> Path:
    """Return the model folder of a network passed in Python."""
    backbone = wrap_network(conv_net(seed=1), num_outputs=3, image_size=32)
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    return tmp_path


def test_a_custom_network_is_restored_with_its_module(custom):
    assert json.loads((custom / "config.json").read_text())["architecture"] is None
    network = conv_net(seed=2, outputs=9)
    backbone, classes = load_model(custom, network=network)
    state = load_file(custom / "model.safetensors")
    assert classes == CLASSES
    assert (backbone.head, backbone.architecture, backbone.input_spec.size) == ("fc", None, 32)
    assert backbone.notes == ()
    assert state.keys() == backbone.module.state_dict().keys()
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert network.fc.out_features == 9


def test_a_custom_network_must_be_passed_again(custom):
    with pytest.raises(UserError, match=r"from Python.* pass its module, load_model\(folder, net"):
        load_model(custom)


def test_another_custom_network_is_rejected(custom):
    other = conv_net()
    other.conv3 = nn.Conv2d(4, 6, 5)
    with pytest.raises(UserError, match=r"does not fit this network: conv3.weight"):
        load_model(custom, network=other)
    other = conv_net()
    other.more = nn.Conv2d(1, 1, 1)
    with pytest.raises(UserError, match=r"does not fit this network: more.bias"):
        load_model(custom, network=other)
    with pytest.raises(UserError, match="does not fit this network: unknown linear"):
        load_model(custom, network=nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)))


def test_an_unneeded_network_is_rejected(tmp_path):
    backbone = load_backbone("test_resnet", num_outputs=3, pretrained=False)
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    with pytest.raises(UserError, match="is a test_resnet: leave network out"):
        load_model(tmp_path, network=conv_net())


@pytest.mark.parametrize(
    "name", ["test_vit", "torchvision/shufflenet_v2_x0_5", "pypi/efficientnet_lite0"]
)
def test_equal_networks_have_equal_bytes(tmp_path, name):
    contents = []
    for number in range(2):
        torch.manual_seed(0)
        backbone = load_backbone(name, num_outputs=3, pretrained=False)
        folder = tmp_path / str(number)
        folder.mkdir()
        save_model(folder, backbone, backbone.module, classes=CLASSES)
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]


def test_tensors_that_share_memory_are_saved(tmp_path):
    network = conv_net()
    network.also = network.conv1
    backbone = wrap_network(network, num_outputs=3, image_size=32)
    save_model(tmp_path, backbone, backbone.module, classes=CLASSES)
    loaded, _ = load_model(tmp_path, network=network)
    assert loaded.module.also is loaded.module.conv1


def test_a_file_of_weights_does_not_change_the_config(tmp_path):
    plain = load_backbone("test_resnet", num_outputs=3, pretrained=False)
    torch.save(plain.module.state_dict(), tmp_path / "weights.pth")
    started = load_backbone("test_resnet", num_outputs=3, weights=tmp_path / "weights.pth")
    for name, backbone in (("plain", plain), ("started", started)):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, backbone, plain.module, classes=CLASSES)
    configs = [(tmp_path / name / "config.json").read_bytes() for name in ("plain", "started")]
    assert configs[0] == configs[1]


def test_a_network_for_graphs_keeps_its_pooling(tmp_path):
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    backbone = load_graph_backbone("pyg/GIN-2x8", num_outputs=2, spec=GraphSpec(), pretrained=False)
    graphs, network = molecules(4, 3), backbone.module.eval()
    save_model(tmp_path, backbone, network, classes=("no", "yes"))
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.module.eval()(graphs), network(graphs))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_args": {}}))  # whose power is 1
    network.pool.power = 1.0
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.module.eval()(graphs), network(graphs))
    for args in ({"pool": "wide"}, ["pool"], None):
        file.write_text(json.dumps({**config, "model_args": args}))
        with pytest.raises(UserError, match=r"is damaged \("):
            load_model(tmp_path)


def test_a_network_for_graphs_is_restored(tmp_path):
    backbone = load_graph_backbone(
        "pretrain-gnns/graphsage", num_outputs=2, spec=GraphSpec(), pretrained=False
    )
    network = backbone.module
    network(molecules(9, 8, 7))  # in train mode, which changes batch-norm statistics
    save_model(tmp_path, backbone, network, classes=["no", "yes"])
    loaded, classes = load_model(tmp_path)
    assert (loaded.input_spec, loaded.head, classes) == (GraphSpec(), "head", ("no", "yes"))
    assert loaded.architecture == "pretrain-gnns/graphsage"
    graphs = molecules(4, 3)
    assert torch.equal(loaded.module.eval()(graphs), network.eval()(graphs))


def test_a_damaged_network_for_graphs_is_rejected(tmp_path):
    backbone = load_graph_backbone(
        "pretrain-gnns/gcn", num_outputs=2, spec=GraphSpec(), pretrained=False
    )
    save_model(tmp_path, backbone, backbone.module, classes=["no", "yes"])
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("/gcn", "/gin"))
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path)

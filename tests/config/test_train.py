import dataclasses
import re
from pathlib import Path

import pytest

from delta_transfer.backbones.registry import GRAPH_LIBRARIES
from delta_transfer.config.presets import GRAPH_MODEL_PREFIXES, PRESETS
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import ConfigError, UserError
from delta_transfer.methods.delta import AUTO, AUTO_GRAPHS
from delta_transfer.methods.registry import method_of


def test_yaml_round_trip(tmp_path):
    config = TrainOptions(
        data="photos/Grüße", lr=1e-5, head_lr=3.0, strength=0.5, num_workers=0
    ).resolve()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("option", ["overwrite", "resume"])
def test_overwrite_and_resume_are_not_saved(tmp_path, option):
    """`train -c` with a run's own file must neither replace nor resume that run."""
    (tmp_path / "a.yaml").write_text(
        TrainOptions(data="images", **{option: True}).resolve().to_yaml()
    )
    assert TrainConfig.load(tmp_path / "a.yaml") == TrainOptions(data="images").resolve()


def test_options_missing_from_the_file_have_defaults(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: images\nepochs: 3\n")
    assert TrainConfig.load(file) == TrainOptions(data="images", epochs=3).resolve()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("data: [", "is not YAML"),
        ("- data", "must contain options"),
        ("epochs: 3", "data among them"),
        ("data: x\nepoch: 3", "unknown option 'epoch': did you mean epochs"),
        ("data: x\nepochs: three", "`epochs` must be a whole number.*, got 'three'"),
        ("data: x\noverwrite: maybe", "`overwrite` must be true or false, got 'maybe'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        TrainConfig.load(file)


def test_a_binary_file_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(UserError, match=r"config\.yaml"):
        TrainConfig.load(file)


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"epochs": True},
        {"batch_size": -1},
        {"image_size": 15},
        {"image_size": "64"},
        {"samples_per_class": 0},
        {"attention_samples": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"num_workers": -1},
        {"strength": -0.1},
        {"strength": float("inf")},
        {"strength": float("nan")},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": "fast"},
        {"head_lr": -1.0},
        {"attention_temperature": 0.0},
        {"attention_temperature": "hot"},
        {"score_clip": 0},
        {"score_clip": float("inf")},
        {"attention_tolerance": -0.1},
        {"clamp_negative_scores": "yes"},
        {"batch_norm": "frozn"},
        {"optimizer": "adam"},
        {"schedule": "linear"},
        {"device": "tpu"},
        {"data": Path("images")},
        {"ema": 1},
        {"label_smoothing": 1},
        {"layer_decay": 1.5},
        {"val_fraction": 0},
        {"folds": 1},
        {"folds": "few"},
        {"head_init": "unstandardized_probe"},
        {"average": "some"},
        {"loggers": "csv,wandbb"},
        {"gradient_accumulation_steps": 33},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=rf"`{name}[=`].*{re.escape(str(value))}"):
        TrainOptions(**{"data": "x", **option}).resolve()


def test_choices_and_ranges_are_listed():
    with pytest.raises(ConfigError, match="frozen, train"):
        TrainOptions(data="x", batch_norm="frozn")
    with pytest.raises(ConfigError, match=r"above 0.* or find"):
        TrainOptions(data="x", lr=0)


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({"resume": True, "overwrite": True}, "resume", "overwrite"),
        ({"epochs": 3, "steps": 3}, "epochs", "steps"),
    ],
)
def test_options_that_exclude_each_other_are_named(options, first, second):
    with pytest.raises(ConfigError, match=f"`{first}` and `{second}` exclude"):
        TrainOptions(data="x", **options).resolve()


def test_given_options_keep_what_was_not_given():
    options = TrainOptions(data="x", lr=0.5)
    assert (options.lr, options.preset, options.epochs, options.optimizer) == (
        0.5,
        None,
        None,
        None,
    )
    config = options.resolve()
    assert (config.lr, config.preset, config.epochs) == (0.5, "default", None)
    assert config.resolve() is config


@pytest.mark.parametrize(
    "option", [{"strength": 0}, {"lr": 1}, {"num_workers": 0}, {"image_size": 16}]
)
def test_bounds_are_allowed_and_whole_numbers_are_numbers(option):
    TrainOptions(data="x", **option).resolve()


@pytest.mark.parametrize(("preset", "estimator"), [("default", "refined"), ("paper", "exact")])
def test_attention_by_preset(preset, estimator):
    config = TrainOptions(data="x", preset=preset).resolve()
    assert (config.attention, config.attention_source) == ("auto", estimator)
    assert config.attention_samples is None
    assert config.attention_tolerance is None


def test_options_cannot_be_changed_and_are_documented():
    config = TrainOptions(data="x").resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    for field in dataclasses.fields(TrainConfig):
        assert re.search(rf"\n +{field.name}: ", TrainOptions.__doc__)


def test_a_precision_may_be_a_number_in_a_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: images\nprecision: 16\nlr: find\n")
    config = TrainConfig.load(file)
    assert (config.precision, config.lr) == ("16", "find")
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config


@pytest.mark.parametrize(("parts", "at_once"), [(1, 8), (3, 3), (8, 1)])
def test_size_of_a_micro_batch(parts, at_once):
    assert (
        TrainOptions(data="x", batch_size=8, gradient_accumulation_steps=parts)
        .resolve()
        .micro_batch_size
        == at_once
    )


@pytest.mark.parametrize("model", ["pretrain-gnns/gin", "pyg/GIN-3x64"])
def test_graph_networks_have_their_own_preset(model, tmp_path):
    config = TrainOptions(data="x", model=model).resolve()
    assert config == TrainOptions(data="x", model=model, preset="graphs").resolve()
    assert (config.epochs, config.lr) == (PRESETS["graphs"].epochs, PRESETS["graphs"].lr)
    assert config.batch_norm == TrainOptions(data="x").resolve().batch_norm
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config
    assert TrainOptions(data="x", model=model, preset="paper").resolve().paper_protocol


def test_the_default_preset_can_be_used_for_graphs(tmp_path):
    config = TrainOptions(data="x", model="pyg/GIN", preset="default").resolve()
    usual = PRESETS["default"]
    assert (config.preset, config.lr, config.epochs) == ("default", usual.lr, usual.epochs)
    assert method_of(config).candidates == AUTO
    assert method_of(TrainOptions(data="x", model="pyg/GIN").resolve()).candidates == AUTO_GRAPHS
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config
    assert dataclasses.replace(config, seed=1).preset == "default"


def test_the_graphs_preset_is_the_default_of_every_graph_library():
    assert set(GRAPH_MODEL_PREFIXES) == set(GRAPH_LIBRARIES)


def test_options_override_the_graphs_preset():
    usual = PRESETS["default"]
    config = TrainOptions(data="x", model="pyg/GIN", lr=0.5, epochs=7).resolve()
    assert (config.lr, config.epochs, config.preset) == (0.5, 7, "graphs")
    assert config.batch_size == usual.batch_size


@pytest.mark.parametrize("num_samples", [1, 9, 32, 33, 100, 640, 1066, 1067, 3200, 50_000])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_the_default_length_has_limits_in_epochs_and_steps(num_samples, batch_size):
    config = TrainOptions(data="x", batch_size=batch_size).resolve()
    epochs = config.count_epochs(num_samples)
    per_epoch = -(-num_samples // batch_size)
    assert epochs >= 10
    assert epochs * per_epoch >= 60
    if epochs > 30:  # only as many as are needed for enough steps
        assert (epochs - 1) * per_epoch < 60
    if epochs > 10 and epochs * per_epoch > 60:  # only as many steps as allowed, in whole epochs
        assert (epochs - 1) * per_epoch < 1000
    if epochs < 30:
        assert epochs * per_epoch >= 1000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 3}, 3),
        ({"steps": 9}, 3),  # of 4 batches each
        ({"preset": "paper"}, 4500),
        ({}, 30),
        ({"model": "pyg/GIN"}, 15),
    ],
)
def test_number_of_epochs(options, expected):
    assert TrainOptions(data="x", **options).resolve().count_epochs(100) == expected


def test_gradient_clipping_by_preset():
    assert TrainOptions(data="x").resolve().grad_clip == 1.0
    assert TrainOptions(data="x", preset="paper").resolve().grad_clip == 0.0
    assert TrainOptions(data="x", preset="paper", grad_clip=2.0).resolve().grad_clip == 2.0

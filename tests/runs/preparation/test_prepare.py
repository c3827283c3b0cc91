import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

from delta_transfer.data.task import pool_train_and_val
from delta_transfer.errors import UserError
from delta_transfer.features.probe import fit_probe
from delta_transfer.runs.preparation import images as image_handler
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup, resplit
from tests.run_folders import tiny
from tests.several import run


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory) -> RunSetup:
    return prepare(tiny(images, tmp_path_factory.mktemp("prepared")))


def test_the_source_is_the_pretrained_network_without_its_head(prepared):
    network, source = prepared.backbone.module, prepared.source
    assert isinstance(source.classifier, nn.Identity)
    own = dict(network.named_parameters())
    for name, parameter in source.named_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter.data_ptr() != own[name].data_ptr()
    assert network.classifier.weight.shape == (3, 1280)


def test_nothing_is_trained(prepared, images, tmp_path):
    again = prepare(tiny(images, tmp_path))
    for first, second in zip(
        prepared.source.state_dict().values(), again.source.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)


def test_the_probabilities_of_the_probe_are_those_of_its_head_in_the_network(prepared, images):
    task, network = prepared.task, prepared.source
    for name, split in (("val", task.val), ("test", task.test)):
        loader = prepared.loaders.with_config(tiny(images, images)).eval_dataloader(split)
        with torch.no_grad():
            features = torch.cat([network.eval()(inputs) for inputs, _ in loader])
        logits = features @ prepared.probe.weight.T + prepared.probe.bias
        expected = logits.softmax(dim=1)
        assert torch.allclose(prepared.probe_predictions[name], expected, atol=1e-5)


def test_the_probe_learns_from_each_image_and_its_mirror_image(prepared, images):
    task, network = prepared.task, prepared.source
    loader = prepared.loaders.with_config(tiny(images, images)).eval_dataloader(task.train)
    inputs = torch.cat([inputs for inputs, _ in loader])
    with torch.no_grad():
        views = torch.stack([network.eval()(inputs), network(inputs.flip(-1))], dim=1)
    labels = torch.tensor(task.train.labels)
    expected = fit_probe(views, labels, num_outputs=3, seed=0)
    logits, found = expected(views.flatten(0, 1)), prepared.probe(views.flatten(0, 1))
    assert prepared.probe.regularization == expected.regularization
    assert torch.allclose(found, logits, atol=0.05 * logits.std().item())


def test_without_a_test_split_there_are_no_probabilities_of_it(images, tmp_path):
    prepared = prepare(tiny(images / "train", tmp_path))
    assert prepared.task.test is None
    assert prepared.probe_predictions["test"] is None
    assert prepared.description[0] == (
        "data     train: 3 classes, 21 training, 3 validation, no test images"
    )
    assert any("test accuracy will be null" in line for line in prepared.description)


def test_the_seed_draws_the_random_head_and_nothing_else_of_the_network(prepared, images):
    other = prepare(tiny(images, images, seed=2**32 + 1))
    differing = [
        name
        for (name, mine), its in zip(
            prepared.backbone.module.state_dict().items(),
            other.backbone.module.state_dict().values(),
            strict=True,
        )
        if not torch.equal(mine, its)
    ]
    assert differing == ["classifier.weight", "classifier.bias"]


def test_the_global_random_state_is_left_alone(prepared, images, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    config = tiny(images, tmp_path)
    prepare(config)
    list(prepared.loaders.with_config(config).train_dataloader(prepared.task.train))
    assert torch.equal(torch.get_rng_state(), before)


def test_taps_are_names_and_patterns_with_commas_between(images, tmp_path, caplog):
    assert prepare(tiny(images, tmp_path, taps="blocks.6, blocks.[01]")).taps == (
        "blocks.6",
        "blocks.0",
        "blocks.1",
    )
    caplog.clear()
    with pytest.raises(UserError, match=r"unknown tap 'blocks\.9'"):
        prepare(tiny(images, tmp_path, taps="blocks.9"))
    with pytest.raises(UserError, match=r"does not use blocks\.0\.0\.drop_path"):
        prepare(tiny(images, tmp_path, taps="blocks.0.0.drop_path"))  # which is never called
    assert not caplog.records  # before anything slow begins


def test_larger_networks_are_suggested_where_there_is_an_accelerator(images, tmp_path):
    config, fast = tiny(images, tmp_path), torch.device("cuda")
    assert image_handler.suggest_models(config, torch.device("cpu")) == ()
    assert "larger models are fast" in image_handler.suggest_models(config, fast)[0]
    chosen = dataclasses.replace(config, model="resnet18")
    assert image_handler.suggest_models(chosen, fast) == ()


def test_the_same_images_split_otherwise_have_the_same_features_and_another_probe(images, tmp_path):
    prepared = prepare(tiny(images / "train", tmp_path, val_fraction=0.25))
    everything = pool_train_and_val(prepared.task)
    train, val = [0, 1, 9, 10, 20, 21, 18], [2, 19]
    found = resplit(prepared, train=train, val=val)
    assert found.task.train.paths == tuple(everything.paths[i] for i in train)
    assert found.task.val.paths == tuple(everything.paths[i] for i in val)
    loader = prepared.loaders.with_config(tiny(images, tmp_path)).eval_dataloader(found.task.train)
    inputs = torch.cat([inputs for inputs, _ in loader])
    rows, labels = found.features["train"]
    with torch.no_grad():
        assert torch.allclose(rows[:, 0], prepared.source.eval()(inputs), atol=1e-4)
    assert labels.tolist() == list(found.task.train.labels)
    expected = fit_probe(rows, labels, num_outputs=3, seed=0)
    assert torch.equal(found.probe.weight, expected.weight)
    probabilities = expected(found.features["val"][0][:, 0]).softmax(dim=1)
    assert torch.equal(found.probe_predictions["val"], probabilities)


@pytest.fixture(scope="module")
def own(images, tmp_path_factory) -> str:
    return prepare(tiny(images, tmp_path_factory.mktemp("own"))).data_fingerprint


class TestFingerprint:
    """It is that of images and classes alone; how they are prepared stands beside it."""

    def test_names_order_and_what_is_tested_on_do_not_matter(self, own, images, tmp_path):
        data = shutil.copytree(images, tmp_path / "data")
        shutil.rmtree(data / "test")
        (data / "train" / "rings" / "0.png").rename(data / "train" / "rings" / "zero.png")
        assert prepare(tiny(data, tmp_path)).data_fingerprint == own

    def test_a_drawn_validation_split_is_learnt_from_in_the_end(self, images, tmp_path):
        found = {
            prepare(tiny(images / "train", tmp_path, seed=seed)).data_fingerprint for seed in (0, 1)
        }
        assert len(found) == 1

    @pytest.mark.parametrize("change", ["image", "class"])
    def test_other_images_or_classes_have_another(self, own, images, tmp_path, change):
        data = shutil.copytree(images, tmp_path / "data")
        rings = data / "train" / "rings"
        if change == "image":
            shutil.copy(data / "test" / "rings" / "0.png", rings / "0.png")
        else:
            (rings / "0.png").rename(data / "train" / "checks" / "100.png")
        assert prepare(tiny(data, tmp_path)).data_fingerprint != own

    def test_preprocessing_is_told_apart(self, prepared, own, images, tmp_path):
        other = prepare(tiny(images, tmp_path, image_size=48))
        assert other.data_fingerprint == own
        spec = dataclasses.asdict(prepared.backbone.input_spec)
        assert prepared.preprocessing == {
            "image_size": spec.pop("size"),
            **{name: list(v) if isinstance(v, tuple) else v for name, v in spec.items()},
            "preset": "default",
        }
        assert json.loads(json.dumps(prepared.preprocessing)) == prepared.preprocessing
        assert other.preprocessing == {**prepared.preprocessing, "image_size": 48}

    def test_every_image_has_one_of_its_own(self, prepared):
        task = prepared.task
        paths = [path for split in (task.train, task.val, task.test) for path in split.paths]
        assert len({prepared.content_hashes[path] for path in paths}) == len(paths)


@pytest.mark.slow
def test_each_machine_reads_its_own_images(images, tmp_path):
    for name in ("data0", "data1"):
        shutil.copytree(images, tmp_path / name)
    run("apart", tmp_path, module="tests.sharded_runs")


@pytest.mark.slow
def test_a_machine_that_lacks_a_image_is_told_of(images, tmp_path):
    for name in ("data0", "data1"):
        shutil.copytree(images, tmp_path / name)
    (tmp_path / "data1" / "train" / "checks" / "0.png").unlink()
    run("unlike", tmp_path, module="tests.sharded_runs")

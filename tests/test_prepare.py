import dataclasses

import pytest
import torch
from torch import nn

from delta_transfer import prepare as module
from delta_transfer.backbones import InputSpec
from delta_transfer.data import load_task
from delta_transfer.errors import UserError
from delta_transfer.prepare import (
    Prepared,
    count_workers,
    find_device,
    plain_loader,
    prepare,
    training_loader,
)
from delta_transfer.probe import fit_probe
from tests.runs import tiny

SPEC = InputSpec(size=32, crop_pct=0.875, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory) -> Prepared:
    return prepare(tiny(pictures, tmp_path_factory.mktemp("prepared")))


def test_the_source_is_the_pretrained_network_without_its_head(prepared):
    network, source = prepared.backbone.module, prepared.source
    assert isinstance(source.classifier, nn.Identity)
    own = dict(network.named_parameters())
    for name, parameter in source.named_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter.data_ptr() != own[name].data_ptr()
    assert network.classifier.weight.shape == (3, 1280)


def test_nothing_is_trained(prepared, pictures, tmp_path):
    again = prepare(tiny(pictures, tmp_path))
    for first, second in zip(
        prepared.source.state_dict().values(), again.source.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)


def test_the_probabilities_of_the_probe_are_those_of_its_head_in_the_network(prepared, pictures):
    task, network = prepared.task, prepared.source
    for name, split in (("val", task.val), ("test", task.test)):
        loader = plain_loader(split, prepared.backbone.input, tiny(pictures, pictures))
        with torch.no_grad():
            features = torch.cat([network.eval()(inputs) for inputs, _ in loader])
        logits = features @ prepared.probe.weight.T + prepared.probe.bias
        expected = logits.softmax(dim=1)
        assert torch.allclose(prepared.probe_probabilities[name], expected, atol=1e-5)


def test_the_probe_learns_from_each_picture_and_its_mirror_image(prepared, pictures):
    task, network = prepared.task, prepared.source
    loader = plain_loader(task.train, prepared.backbone.input, tiny(pictures, pictures))
    inputs = torch.cat([inputs for inputs, _ in loader])
    with torch.no_grad():
        views = torch.stack([network.eval()(inputs), network(inputs.flip(-1))], dim=1)
    labels = torch.tensor(task.train.labels)
    expected = fit_probe(views, labels, num_outputs=3, seed=0)
    logits, found = expected(views.flatten(0, 1)), prepared.probe(views.flatten(0, 1))
    assert prepared.probe.strength == expected.strength
    assert torch.allclose(found, logits, atol=0.05 * logits.std().item())


def test_without_a_test_split_there_are_no_probabilities_of_it(pictures, tmp_path):
    prepared = prepare(tiny(pictures / "train", tmp_path))
    assert prepared.task.test is None
    assert prepared.probe_probabilities["test"] is None
    assert prepared.description[0] == (
        "data     train: 3 classes, 21 training, 3 validation, no test pictures"
    )
    assert any("test accuracy will be null" in line for line in prepared.description)


def test_the_seed_draws_the_random_head_and_nothing_else_of_the_network(prepared, pictures):
    other = prepare(tiny(pictures, pictures, seed=2**32 + 1))
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


def test_the_global_random_state_is_left_alone(pictures, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    config = tiny(pictures, tmp_path)
    prepare(config)
    list(training_loader(load_task(str(pictures), seed=0).train, SPEC, config))
    assert torch.equal(torch.get_rng_state(), before)


def test_taps_are_names_and_patterns_with_commas_between(pictures, tmp_path, caplog):
    assert prepare(tiny(pictures, tmp_path, taps="blocks.6, blocks.[01]")).taps == (
        "blocks.6",
        "blocks.0",
        "blocks.1",
    )
    caplog.clear()
    with pytest.raises(UserError, match=r"unknown tap 'blocks\.9'"):
        prepare(tiny(pictures, tmp_path, taps="blocks.9"))
    with pytest.raises(UserError, match=r"does not use blocks\.0\.0\.drop_path"):
        prepare(tiny(pictures, tmp_path, taps="blocks.0.0.drop_path"))  # which is never called
    assert not caplog.records  # before anything slow begins


def test_plain_pictures_come_in_order_and_without_chance(pictures, tmp_path):
    task, config = load_task(str(pictures), seed=0), tiny(pictures, tmp_path, batch_size=5)
    first, second = (list(plain_loader(task.train, SPEC, config)) for _ in range(2))
    assert [len(labels) for _, labels in first] == [5, 5, 5, 5, 4]
    assert torch.cat([labels for _, labels in first]).tolist() == list(task.train.labels)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_pictures_are_a_function_of_seed_and_epoch(pictures, tmp_path, workers):
    task = load_task(str(pictures), seed=0)

    def epoch(number: int, **options: int) -> torch.Tensor:
        loader = training_loader(task.train, SPEC, tiny(pictures, tmp_path, **options))
        loader.sampler.set_epoch(number)
        return torch.cat([inputs for inputs, _ in loader])

    expected = epoch(3, seed=1)
    assert torch.equal(epoch(3, seed=1, workers=workers), expected)
    assert torch.equal(epoch(3, seed=1, batch_size=3), expected)
    assert not torch.equal(epoch(4, seed=1), expected)
    assert not torch.equal(epoch(3, seed=2), expected)


def test_order_and_augmentation_are_drawn_apart(pictures, tmp_path):
    task = load_task(str(pictures), seed=0)
    loaders = [
        training_loader(task.train, SPEC, tiny(pictures, tmp_path, seed=seed)) for seed in (0, 1)
    ]
    assert list(loaders[0].sampler) != list(loaders[1].sampler)
    pictures_of = [torch.stack([loader.dataset[2, i][0] for i in range(8)]) for loader in loaders]
    assert not torch.equal(*pictures_of)
    plain = next(iter(plain_loader(task.train, SPEC, tiny(pictures, tmp_path))))[0]
    assert not torch.equal(pictures_of[0], plain)


def test_no_worker_is_started_that_has_no_batch_to_load(pictures, tmp_path):
    task = load_task(str(pictures), seed=0)
    for workers, batch_size, expected in ((2, 8, 2), (2, 16, 1), (2, 32, 0)):
        config = tiny(pictures, tmp_path, workers=workers, batch_size=batch_size)
        assert plain_loader(task.train, SPEC, config).num_workers == expected


def test_larger_networks_are_suggested_where_there_is_an_accelerator(pictures, tmp_path):
    config, task = tiny(pictures, tmp_path), load_task(str(pictures), seed=0)
    plain = module._describe(config, task, torch.device("cpu"))
    fast = module._describe(config, task, torch.device("cuda"))
    assert fast[:-2] == plain[:-1]
    assert "larger ones are fast too" in fast[-1]
    chosen = dataclasses.replace(config, model="resnet18")
    assert "larger" not in module._describe(chosen, task, torch.device("cuda"))[-1]


def test_a_damaged_picture_is_named(pictures, tmp_path):
    task = load_task(str(pictures), seed=0)
    (tmp_path / "bad.png").write_text("no picture")
    split = dataclasses.replace(
        task.train, paths=(str(tmp_path / "bad.png"), *task.train.paths[1:])
    )
    loader = plain_loader(split, SPEC, tiny(pictures, tmp_path))
    with pytest.raises(UserError, match=r"cannot read the picture '.*bad\.png'"):
        list(loader)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    def machine(kind: str | None):
        device = None if kind is None else torch.device(kind)
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available: device
        )

    machine(None)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda: this machine has only a CPU"):
        find_device("cuda")
    machine("cuda")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device mps: this machine has cpu and cuda"):
        find_device("mps")
    machine("xpu")  # which nobody has tried
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cores", "asked", "expected"),
    [(2, None, 0), (1, None, 0), (3, None, 2), (64, None, 8), (64, 0, 0), (1, 5, 5)],
)
def test_workers_are_as_asked_or_by_the_number_of_cores(monkeypatch, cores, asked, expected):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert count_workers(asked) == expected

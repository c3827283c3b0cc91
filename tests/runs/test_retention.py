import copy
import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from delta_transfer import train
from delta_transfer.data.images.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from delta_transfer.errors import ConfigError, DataError, UserError, as_flags
from delta_transfer.metrics.run_result import RETENTION_COLUMNS, RunResult
from delta_transfer.runs import retention as module
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.preparation.shifted import load_shifted
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.runs.retention import (
    MAX_IMAGES,
    UNCORRUPTED,
    Count,
    Retention,
    measure_retention,
    measure_run,
    measure_shifted,
)
from delta_transfer.runs.summary import format_retention
from delta_transfer.utils.seeds import derive_seed
from tests.networks import hooks_of
from tests.run_folders import CLASSES, tiny

ALL = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSetup:
    return prepare(tiny(images, tmp_path_factory.mktemp("prepared")))


def with_probe(setup: RunSetup) -> nn.Module:
    """The pretrained network with the probe's head: what is there before any training."""
    network = copy.deepcopy(setup.backbone.module)
    head = network.get_submodule(setup.backbone.head)
    with torch.no_grad():
        head.weight.copy_(setup.probe.weight)
        head.bias.copy_(setup.probe.bias)
    return network


def changed(setup: RunSetup, by: float = 0.05) -> nn.Module:
    """A network that has moved so far from there that some images are of another class."""
    network = with_probe(setup)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += by * parameter.abs().mean() * torch.randn_like(parameter)
    return network


def headless(network: nn.Module, setup: RunSetup) -> nn.Module:
    """A copy that returns its features."""
    found = copy.deepcopy(network).eval()
    setattr(found, setup.backbone.head, nn.Identity())
    return found


def features(network: nn.Module, setup: RunSetup, pixels: Tensor) -> Tensor:
    """What a network returns for one image, bytes `[3, S, S]`."""
    spec = setup.backbone.input_spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        return network(((pixels / 255 - mean) / std).unsqueeze(0))


class TestMeasures:
    def test_before_training_everything_is_kept(self, prepared: RunSetup) -> None:
        found = measure_retention(with_probe(prepared), prepared, prepared.task.test)
        assert found.num_compared == found.num_agreeing == len(prepared.task.test) == 12
        assert found.result_fields()["kept_agreement"] == 1.0
        assert list(found.corrupted) == [UNCORRUPTED, *ALL]
        for count in found.corrupted.values():
            assert count.num_images == 12
            assert count.num_correct == count.num_probe_correct

    def test_one_image_after_the_other(self, prepared: RunSetup) -> None:
        """All predictions by a loop without batches and hooks."""
        network, split = changed(prepared), prepared.task.test.subset(range(0, 12, 2))
        found = measure_retention(network, prepared, split)
        pair = headless(network, prepared), headless(with_probe(prepared), prepared)
        dataset = prepared.loaders.eval_dataloader(split).dataset
        head = network.get_submodule(prepared.backbone.head)
        classifier = prepared.backbone.classifier
        agreeing, expected = 0, {key: Count() for key in found.corrupted}
        for index, path in enumerate(split.paths):
            pixels, label = dataset[index]
            seed = derive_seed(0, "corruption", path)
            for key in expected:
                image = pixels if key == UNCORRUPTED else corrupt(pixels, *key, seed=seed)
                own, source = (features(net, prepared, image) for net in pair)
                probe = source @ prepared.probe.weight.T + prepared.probe.bias
                expected[key] += Count(
                    num_images=1,
                    num_correct=int(head(own).argmax() == label),
                    num_probe_correct=int(probe.argmax() == label),
                )
                if key == UNCORRUPTED:
                    agreeing += int(classifier(own).argmax() == classifier(source).argmax())
        assert (found.num_agreeing, found.corrupted) == (agreeing, expected)
        assert 0 < agreeing < len(split)  # so that the test tells something
        assert found.total_corrupted.num_correct != found.total_corrupted.num_probe_correct

    def test_twice_the_same_and_nothing_is_changed(self, prepared: RunSetup) -> None:
        network = changed(prepared).train()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        state = torch.get_rng_state()
        first = measure_retention(network, prepared, prepared.task.val)
        assert torch.equal(torch.get_rng_state(), state)
        assert measure_retention(network, prepared, prepared.task.val) == first
        assert network.training
        assert hooks_of(network) == hooks_of(prepared.source) == 0
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name])

    def test_shards_of_several_processes_are_the_same(
        self, prepared: RunSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def in_two(count: int, size: int, make: Any) -> tuple[Tensor, ...]:
            batches = [range(s, min(s + size, count)) for s in range(0, count, size)]
            own = [[i for batch in batches[rank::2] for i in batch] for rank in (0, 1)]
            rows = [make(indices)[0] for indices in own if indices]
            order = torch.tensor([i for indices in own for i in indices]).argsort()
            return (torch.cat(rows)[order],)

        network = changed(prepared)
        expected = measure_retention(network, prepared, prepared.task.val)
        monkeypatch.setattr(module, "shard_and_gather", in_two)
        assert measure_retention(network, prepared, prepared.task.val) == expected

    def test_without_a_classifier_there_is_no_agreement(self, prepared: RunSetup) -> None:
        backbone = dataclasses.replace(prepared.backbone, classifier=None)
        setup = dataclasses.replace(prepared, backbone=backbone)
        found = measure_retention(changed(setup), setup, setup.task.test)
        fields = found.result_fields()
        assert fields["kept_agreement"] is None
        assert fields["corruption_accuracy"] is not None

    def test_graphs_have_neither(self) -> None:
        setup: Any = SimpleNamespace(task=SimpleNamespace(kind="graphs"))
        found = measure_retention(nn.Identity(), setup, SimpleNamespace())
        assert found == Retention()
        assert set(found.result_fields()) == set(RETENTION_COLUMNS)
        assert set(found.result_fields().values()) == {None}

    @pytest.mark.parametrize("count", [1, 66, 67, 200])
    def test_each_corruption_has_as_many_images_as_any(self, count: int) -> None:
        copies = module._choose_copies(count)
        assert len(copies) == count
        assert len({len(own) for own in copies}) == 1
        totals = {key: sum(key in own for own in copies) for key in ALL}
        by_corruption = {name: sum(totals[name, s] for s in SEVERITIES) for name in CORRUPTIONS}
        assert len(set(by_corruption.values())) == 1
        assert max(by_corruption.values()) <= MAX_IMAGES
        if count > 1:
            assert max(totals.values()) - min(totals.values()) <= 1

    def test_at_most_so_many_images_evenly_spread(
        self, prepared: RunSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_IMAGES", 4)
        split = prepared.task.test  # 3, 4 and 5 images of the classes
        found = measure_retention(changed(prepared), prepared, split)
        expected = measure_retention(changed(prepared), prepared, split.subset([0, 3, 6, 9]))
        assert found == expected
        assert found.num_compared == 4
        assert found.total_corrupted.num_images == 4 * len(CORRUPTIONS)


class TestMeasureRun:
    def selected(self, setup: RunSetup, *, num_folds: int, test: bool) -> Any:
        task = setup.task if test else dataclasses.replace(setup.task, test=None)
        return SimpleNamespace(
            setup=dataclasses.replace(setup, task=task),
            network=with_probe(setup),
            held_out=setup.task.val,
            num_folds=num_folds,
        )

    @pytest.mark.parametrize(
        ("num_folds", "test", "count"),
        [(0, True, 12), (3, True, 12), (0, False, 15), (3, False, 0)],
    )
    def test_only_images_that_were_not_trained_on(
        self, prepared: RunSetup, num_folds: int, test: bool, count: int
    ) -> None:
        found = measure_run(self.selected(prepared, num_folds=num_folds, test=test))
        assert found.num_compared == count
        assert found.shifted == Count()


class TestRun:
    def test_the_result_and_the_file_agree(self, finished: RunResult) -> None:
        with (finished.folder / "corruptions.csv").open(newline="") as file:
            first, *rows = csv.DictReader(file)
        assert (first["corruption"], first["severity"]) == ("none", "0")
        assert float(first["accuracy"]) == pytest.approx(finished.test_accuracy)
        assert float(first["linear_probe_accuracy"]) == pytest.approx(
            finished.linear_probe_test_accuracy
        )
        assert [(row["corruption"], int(row["severity"])) for row in rows] == ALL
        assert {row["num_images"] for row in rows} == {"12"}
        for column, field in (
            ("accuracy", "corruption_accuracy"),
            ("linear_probe_accuracy", "linear_probe_corruption_accuracy"),
        ):
            mean = sum(float(row[column]) for row in rows) / len(rows)
            assert getattr(finished, field) == pytest.approx(mean)
        assert 0 <= finished.kept_agreement <= 1
        assert finished.shifted_accuracy is None
        log = (finished.folder / "train.log").read_text()
        assert f"kept     {format_retention(finished)}" in log

    def test_the_probe_keeps_all_and_is_itself(self, compared: list[RunResult]) -> None:
        probes = [result for result in compared if result.method == "probe"]
        assert len(probes) == 2
        for result in probes:
            assert result.kept_agreement == 1.0
            assert result.corruption_accuracy == result.linear_probe_corruption_accuracy

    def test_all_methods_have_the_same_probe_on_the_same_images(
        self, compared: list[RunResult]
    ) -> None:
        for seed in (0, 1):
            own = [result for result in compared if result.seed == seed]
            assert len({result.linear_probe_corruption_accuracy for result in own}) == 1

    def test_a_result_of_before_has_none(self, finished: RunResult, tmp_path: Path) -> None:
        values = json.loads((finished.folder / "result.json").read_text())
        old = {name: value for name, value in values.items() if name not in RETENTION_COLUMNS}
        (tmp_path / "result.json").write_text(json.dumps(old))
        found = RunResult.load(tmp_path)
        assert [getattr(found, name) for name in RETENTION_COLUMNS] == [None] * 5
        assert format_retention(found) == ""


def write_shifted(folder: Path, images: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """Upside down, and of all splits."""
    for path in sorted(images.rglob("*.png")):
        split, name = path.parts[-3:-1]
        if name in classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.rotate(180).save(folder / name / f"{split}-{path.name}")
    return folder


class TestShifted:
    def test_a_run(self, images: Path, tmp_path: Path) -> None:
        shifted = write_shifted(tmp_path / "shifted", images, CLASSES[1:])
        (shifted / CLASSES[1] / "broken.png").write_bytes(b"no image")
        config = tiny(images, tmp_path / "run", method="l2", epochs=1, shifted=str(shifted))
        result = train(config)
        log = (tmp_path / "run" / "train.log").read_text()
        assert f"shifted  {shifted}: 35 images of 2 classes" in log
        assert f"1 of 36 images of {shifted} cannot be read and are left out" in log
        setup = prepare(config)
        assert setup.shifted is not None
        assert {setup.task.classes[label] for label in setup.shifted.labels} == set(CLASSES[1:])
        found = measure_shifted(with_probe(setup), setup)
        assert found.num_images == 35
        assert result.linear_probe_shifted_accuracy == found.probe_accuracy == found.accuracy
        assert 0 <= result.shifted_accuracy <= 1
        assert "shifted images" in format_retention(result)
        page = (tmp_path / "run" / "report.html").read_text()
        assert "On the shifted images, shifted, the accuracy is" in page

    def test_images_that_are_trained_on_are_a_warning(self, images: Path, tmp_path: Path) -> None:
        setup = prepare(tiny(images, tmp_path, shifted=str(images / "train")))
        (warning,) = [line for line in setup.description if "among the training" in line]
        assert warning.startswith("warning: 24 of 24 images of")
        assert "the accuracy on shifted images is optimistic: remove them" in warning

    def test_a_test_split_of_the_folder_is_used(self, images: Path, tmp_path: Path) -> None:
        config = tiny(images, tmp_path, shifted=str(images))
        split = load_shifted(config, find_data(config))
        assert split == find_data(config).test

    def test_without_the_option_there_is_none(self, prepared: RunSetup) -> None:
        assert prepared.shifted is None
        assert measure_shifted(nn.Identity(), prepared) == Count()


class TestMistakes:
    def refused(self, kind: type[UserError], data: Path, tmp_path: Path, shifted: Path) -> str:
        config = tiny(data, tmp_path / "run", shifted=str(shifted))
        with pytest.raises(kind) as caught:
            train(config)
        assert not (tmp_path / "run").exists()  # before any training
        message = str(caught.value)
        assert message.startswith(f"`shifted={shifted}`: ")
        assert as_flags(message).startswith(f"--shifted {shifted}: ")
        return message.removeprefix(f"`shifted={shifted}`: ")

    def test_no_folder(self, images: Path, tmp_path: Path) -> None:
        message = self.refused(DataError, images, tmp_path, tmp_path / "missing")
        assert message.startswith(f"there is no folder '{tmp_path / 'missing'}'")

    def test_other_classes(self, images: Path, tmp_path: Path) -> None:
        shifted = write_shifted(tmp_path / "shifted", images)
        (shifted / "rings").rename(shifted / "circles")
        assert self.refused(DataError, images, tmp_path, shifted) == (
            "patterns has no class 'circles', only checks, rings, stripes: rename or remove these "
            "folders"
        )

    def test_no_readable_image(self, images: Path, tmp_path: Path) -> None:
        file = tmp_path / "shifted" / "rings" / "a.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"no image")
        message = self.refused(DataError, images, tmp_path, tmp_path / "shifted")
        assert message.startswith("none of its 1 images can be read; replace them: 'rings/a.png'")

    def test_data_without_classes(self, images: Path, tmp_path: Path) -> None:
        task: Any = SimpleNamespace(
            kind="graphs",
            name="tox21",
            sample_type="molecule",
            task_type=SimpleNamespace(target_kind="binary targets"),
        )
        with pytest.raises(ConfigError) as caught:
            load_shifted(tiny(images, tmp_path, shifted=str(images)), task)
        assert str(caught.value) == (
            f"`shifted={images}`: only for images with classes, but tox21 has molecules with "
            "binary targets; leave the option out"
        )

    @pytest.mark.parametrize("option", [{"shifted": 3}, {"shifted": True}])
    def test_a_value_of_another_type(self, option: dict[str, Any], images: Path) -> None:
        with pytest.raises(ConfigError, match="`shifted` must be"):
            tiny(images, images, **option)

    def test_the_run_must_not_be_among_the_images(self, images: Path, tmp_path: Path) -> None:
        shifted = write_shifted(tmp_path / "shifted", images)
        config = tiny(images, shifted / "run", shifted=str(shifted))
        with pytest.raises(UserError, match=f"is in the data folder {shifted}"):
            train(config)

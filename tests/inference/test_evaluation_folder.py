import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from delta_transfer.data.task import Split
from delta_transfer.errors import ConfigError, EnvironmentError, UserError
from delta_transfer.inference.evaluation import Evaluation, evaluate_multiclass
from delta_transfer.inference.evaluation_folder import check_folder, default_folder, save_evaluation

FILES = {"evaluation.json", "predictions.csv", "confusion.csv"}


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluate_multiclass(
        Split(("a.png",), (0,), lambda path: Image.new("RGB", (2, 2))),
        torch.tensor([[0.75, 0.25]]),
        ("cat", "dog"),
        data="/data/pets",
        metric_name="accuracy",
        overlaps_training_data=False,
        num_unreadable=0,
        samples_per_second=1.0,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TestDefaultFolder:
    @pytest.mark.parametrize(
        ("data", "name"),
        [
            ("/data/pets", "pets"),
            ("torchvision/oxford_iiit_pet", "torchvision-oxford_iiit_pet"),
            ("hf/org/name:config", "hf-org-name:config"),
            ("/", "data"),
        ],
    )
    def test_it_is_named_after_the_data(self, tmp_path, data, name):
        assert default_folder(tmp_path, data) == tmp_path / "evaluation" / name

    def test_a_csv_file_is_named_without_its_extension(self, tmp_path):
        (tmp_path / "pets.csv").touch()
        found = default_folder(tmp_path, str(tmp_path / "pets.csv"))
        assert found == tmp_path / "evaluation" / "pets"

    def test_other_data_of_the_same_name_gets_a_number(self, tmp_path, evaluation):
        first = save_evaluation(evaluation, run=tmp_path, out=None)
        assert first == tmp_path / "evaluation" / "pets"
        assert save_evaluation(evaluation, run=tmp_path, out=None) == first
        other = dataclasses.replace(evaluation, data="/elsewhere/pets")
        second = save_evaluation(other, run=tmp_path, out=None)
        assert second == tmp_path / "evaluation" / "pets-2"
        assert save_evaluation(other, run=tmp_path, out=None) == second
        (tmp_path / "evaluation" / "pets-3").touch()
        third = dataclasses.replace(evaluation, data="/third/pets")
        assert default_folder(tmp_path, third.data).name == "pets-4"


class TestCheckFolder:
    def test_what_is_new_empty_or_an_evaluation_is_accepted(self, tmp_path, evaluation):
        check_folder(tmp_path / "new" / "deep", data="data")
        check_folder(tmp_path, data="data")
        save_evaluation(evaluation, run=tmp_path, out=str(tmp_path / "old"))
        check_folder(tmp_path / "old", data="data")
        assert names(tmp_path) == {"old"}

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"data": 3}', json.dumps({"test_accuracy": 0.5})]
    )
    def test_anything_else_is_refused(self, tmp_path, content):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(ConfigError, match=r"`out=.*` is not empty"):
            check_folder(tmp_path, data="data")

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(UserError, match=r"^`out=.*` is a file"):
            check_folder(tmp_path / "out", data="data")
        with pytest.raises(
            EnvironmentError, match=r"below\S* cannot .*because of \S*/out: use another"
        ):
            check_folder(tmp_path / "out" / "below", data="data")

    def test_a_folder_among_the_images_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="data folder"):
            check_folder(tmp_path / "data" / ".." / "out", data=str(tmp_path))

    def test_a_folder_that_cannot_be_written_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
        with pytest.raises(
            EnvironmentError, match=f"cannot be written, because of {tmp_path}: use"
        ):
            check_folder(tmp_path / "new" / "out", data="data")


class TestSave:
    def test_an_older_evaluation_is_replaced_and_nothing_else(self, tmp_path, evaluation):
        out = tmp_path / "deep" / "out"
        assert save_evaluation(evaluation, run=tmp_path, out=str(out)) == out
        assert names(out) == FILES
        (out / "notes.txt").write_text("mine")
        better = dataclasses.replace(evaluation, accuracy=0.5)
        save_evaluation(better, run=tmp_path, out=str(out))
        assert names(out) == {*FILES, "notes.txt"}
        assert json.loads((out / "evaluation.json").read_text())["accuracy"] == 0.5
        assert names(out.parent) == {"out"}

    def test_it_is_whole_or_not_there(self, tmp_path, evaluation, monkeypatch):
        monkeypatch.setattr("delta_transfer.inference.evaluation.write_atomically", full)
        with pytest.raises(UserError, match=r"`out=.*out` cannot be written \(No space left"):
            save_evaluation(evaluation, run=tmp_path, out=str(tmp_path / "out"))
        assert not names(tmp_path)

    def test_an_older_evaluation_stays_whole(self, tmp_path, evaluation, monkeypatch):
        out = tmp_path / "out"
        save_evaluation(evaluation, run=tmp_path, out=str(out))
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        monkeypatch.setattr("delta_transfer.inference.evaluation.write_atomically", full)
        with pytest.raises(UserError):
            save_evaluation(
                dataclasses.replace(evaluation, accuracy=0.5), run=tmp_path, out=str(out)
            )
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert names(tmp_path) == {"out"}

    def test_a_run_that_cannot_be_written_is_reported(
        self, tmp_path, evaluation, monkeypatch, caplog
    ):
        monkeypatch.setattr("delta_transfer.inference.evaluation.write_atomically", full)
        assert save_evaluation(evaluation, run=tmp_path, out=None) is None
        (message,) = caplog.messages
        assert message.startswith("no files are written: ")
        assert str(tmp_path / "evaluation" / "pets") in message
        assert message.endswith("choose a folder with `out`")
        assert not names(tmp_path / "evaluation")

import csv
import errno
import json
from pathlib import Path

import pytest

from delta_transfer.errors import UserError
from delta_transfer.inference.prediction_files import check_csv_path, to_json, to_line, write_csv
from delta_transfer.inference.predictor import Prediction

FIRST = Prediction("a.png", {"dog": 0.7, "cat": 0.2, "path": 0.1})
SECOND = Prediction('b, "c".png', {"path": 1 / 3 + 1e-4, "cat": 1 / 3, "dog": 1 / 3})
CLASSES = ("cat", "dog", "path")


def test_a_line_has_the_best_classes():
    assert to_line(FIRST, top=1) == "a.png\tdog\t0.7000"
    assert to_line(FIRST, top=2) == "a.png\tdog\t0.7000\tcat\t0.2000"
    assert to_line(FIRST, top=99) == to_line(FIRST, top=3)


def test_json_is_a_list_with_all_or_the_best_classes():
    assert json.loads(to_json([FIRST, SECOND], top=None)) == [
        {
            "path": prediction.path,
            "prediction": prediction.top_class,
            "probabilities": prediction.probabilities,
        }
        for prediction in (FIRST, SECOND)
    ]
    (row,) = json.loads(to_json([FIRST], top=2))
    assert row["probabilities"] == {"dog": 0.7, "cat": 0.2}
    assert json.loads(to_json([], top=2)) == []


def test_a_table_has_a_column_for_each_class(tmp_path):
    write_csv(tmp_path / "new.csv", [FIRST, SECOND], CLASSES)
    with (tmp_path / "new.csv").open(newline="") as file:
        header = file.readline().strip()
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert header == "path,prediction,probability,cat,dog,path (class)"
    assert rows[0] == {
        "path": "a.png",
        "prediction": "dog",
        "probability": "0.700000",
        "cat": "0.200000",
        "dog": "0.700000",
        "path (class)": "0.100000",
    }
    assert rows[1]["path"] == 'b, "c".png'
    assert rows[1]["prediction"] == "path (class)"
    assert rows[1]["probability"] == rows[1]["path (class)"] == "0.333433"


def test_a_file_name_that_is_not_text_can_be_written(tmp_path):
    write_csv(tmp_path / "new.csv", [Prediction("caf\udce9.png", {"cat": 1.0})], ["cat"])
    assert "caf\\udce9.png,cat" in (tmp_path / "new.csv").read_text()


class TestCheckTable:
    def test_a_new_file_is_fine(self, tmp_path, monkeypatch):
        check_csv_path(tmp_path / "new.csv", overwrite=False)
        check_csv_path(tmp_path / "new.csv", overwrite=True)
        monkeypatch.chdir(tmp_path)
        check_csv_path(Path("new.csv"), overwrite=False)
        assert not list(tmp_path.iterdir())

    def test_an_old_one_must_be_given_up(self, tmp_path):
        (tmp_path / "old.csv").touch()
        with pytest.raises(UserError, match=r"`csv=.*old.csv` already exists: .* `overwrite`"):
            check_csv_path(tmp_path / "old.csv", overwrite=False)
        check_csv_path(tmp_path / "old.csv", overwrite=True)

    @pytest.mark.parametrize("path", [".", "/dev/null"])
    def test_what_is_not_a_file_is_refused(self, tmp_path, path):
        with pytest.raises(UserError, match="is not a file"):
            check_csv_path(tmp_path / path, overwrite=True)

    def test_the_folder_must_be_there_and_open(self, tmp_path, monkeypatch):
        with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
            check_csv_path(tmp_path / "nowhere" / "new.csv", overwrite=False)
        monkeypatch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(UserError, match="is not writable"):
            check_csv_path(tmp_path / "new.csv", overwrite=False)


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "new.csv"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"`csv=.*new.csv` cannot be written \(No space left"):
        write_csv(path, [FIRST], CLASSES)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

import json
import re
from pathlib import Path

import numpy as np
import pytest

from delta_transfer.errors import UserError
from delta_transfer.report.run_files import read_attention
from delta_transfer.report.run_page import write_run_report
from tests.report.large import write_attention
from tests.report.made import COMPARED, RESULT, SELECTION


def selected(**changes: object) -> str:
    """`result.json` of an average with changes."""
    return json.dumps({**RESULT, "model_selection": {**SELECTION, **changes}})


class TestDamage:
    @pytest.mark.parametrize("name", ["result.json", "config.yaml", "predictions.csv"])
    def test_missing(self, run: Path, name: str) -> None:
        (run / name).unlink()
        with pytest.raises(UserError, match=re.escape(name)):
            write_run_report(run)
        assert not (run / "report.html").exists()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("result.json", "{"),
            ("result.json", json.dumps({**RESULT, "val_accuracy": None})),
            ("result.json", json.dumps({**RESULT, "val_accuracy": 80.0})),
            ("result.json", json.dumps({**RESULT, "linear_probe_test_accuracy": None})),
            ("result.json", json.dumps({**RESULT, "wall_time_s": "long"})),
            ("result.json", selected(mixing_coefficients=[1.0])),
            ("result.json", selected(mixing_coefficients=["none", "all"])),
            ("result.json", selected(folds=None)),
            ("result.json", json.dumps({**RESULT, "probe_comparison": {**COMPARED, "ci_low": ""}})),
            ("config.yaml", "a: [1"),
            ("config.yaml", "- a"),
            ("config.yaml", "a: {b: 1}"),
            ("config.yaml", b"\xff\xfe\x00"),
            ("metrics.csv", ""),
            ("metrics.csv", "step,val_accuracy\n1,0.5\n"),
            ("metrics.csv", "epoch,val_accuracy\n0,high\n"),
            ("metrics.csv", "epoch,val_accuracy\n0.5,0.5\n"),
            ("metrics.csv", "epoch,val_accuracy\n0,0.5\n1"),
            ("metrics.csv", b"epoch,val_accuracy\n0,\xff\n"),
            ("drift.csv", "epoch,tap\n0,a\n"),
            ("drift.csv", "epoch,tap,distance\n-1,a,0\n"),
            ("predictions.csv", "path,label,prediction\n"),
            ("predictions.csv", "path,label,prediction,cat,dog\n"),
            ("predictions.csv", "path,label,prediction,cat,dog\n1.jpg,cat,owl,0.5,0.5\n"),
            ("predictions.csv", "path,label,prediction,cat,dog\n1.jpg,cat,dog,0.5\n"),
            ("predictions.csv", "path,label,prediction,cat,dog\n1.jpg,cat,dog,0.5,1.5\n"),
            ("predictions.csv", 'path,label,prediction,cat\n"1.jpg,cat,cat,0.5\n'),
            ("examples.csv", "file,path,label,prediction\n00.jpg,a,cat,cat\n"),
            ("examples.csv", "file,path,label,prediction,probability\n../a.jpg,a,cat,cat,1\n"),
            ("examples.csv", "file,path,label,prediction,probability\n,a,cat,cat,1\n"),
            ("examples/00.jpg", "no image"),
        ],
    )
    def test_damaged(self, run: Path, name: str, content: str | bytes) -> None:
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(UserError, match=re.escape(name.partition("/")[0])):
            write_run_report(run)
        assert not (run / "report.html").exists()

    def test_attention(self, run: Path) -> None:
        assert read_attention(run) is None
        write_attention(run, {"a": np.full(4, 0.25, np.float32)})
        path = run / "attention.safetensors"
        whole = path.read_bytes()
        for content in (b"", whole[:-1], whole.replace(b"attention/a", b"attention/b")):
            path.write_bytes(content)
            with pytest.raises(
                UserError, match=r"attention\.safetensors is not a channel attention"
            ):
                read_attention(run)

    def test_line_is_named(self, run: Path) -> None:
        with (run / "drift.csv").open("a") as file:
            file.write("x,blocks.1,0\n")
        with pytest.raises(
            UserError, match=r"drift\.csv, line 10: epoch must be a number, got 'x'"
        ):
            write_run_report(run)

    def test_image_missing_or_cut_off(self, run: Path) -> None:
        image = run / "examples" / "00.jpg"
        image.write_bytes(image.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"00\.jpg is not an image, or is damaged"):
            write_run_report(run)
        image.unlink()
        with pytest.raises(UserError, match=r"00\.jpg is missing"):
            write_run_report(run)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no finished run in"):
            write_run_report(tmp_path / "nowhere")

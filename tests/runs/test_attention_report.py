"""The command `attention`, from its arguments to what it prints and leaves behind."""

import errno
import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image, ImageOps

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention.estimators.checkpoint import EstimateCheckpoint
from delta_transfer.attention.estimators.job import CHUNK_SIZE
from delta_transfer.cli.main import main
from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.attention import attention_sample_order
from tests.run_folders import CLASSES, SPLITS, flags

LITE0_TAPS = ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]
SMALL = ["--image-size=32", "--batch-size=8", "--device=cpu", "--num-workers=0"]


@pytest.fixture
def command(images: Path, tmp_path: Path) -> list[str]:
    """To first order and at one tap, which is fast."""
    out = tmp_path / "pets.safetensors"
    fast = ["--estimator=gradient", "--taps=blocks.6"]
    return ["attention", str(images), f"--out={out}", *fast, *SMALL]


def test_it_prints_a_line_for_each_tap_and_leaves_two_files(capsys, command, tmp_path):
    assert main([*command, "--taps=auto"]) == 0
    said = capsys.readouterr()
    assert "3 classes, 24 training, 15 validation, 12 test" in said.err
    lines = said.out.splitlines()
    assert lines[0].strip() == "Channel attention: gradient on 24 images, temperature 5"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("blocks")}
    file, sample = tmp_path / "pets.safetensors", tmp_path / "pets.png"
    attention = ChannelAttention.load(file)
    assert list(rows) == LITE0_TAPS == list(attention.taps)
    for tap, (channels, effective, _, error, least, most, *top) in rows.items():
        weights, scores = attention.attention[tap], attention.scores[tap]
        assert int(channels) == len(scores)
        assert float(effective) == pytest.approx(attention.effective_channels[tap], abs=0.06)
        assert float(error.removesuffix("%")) > 0
        assert float(least) == pytest.approx(len(scores) * weights.min().item(), abs=0.006)
        assert float(most) == pytest.approx(len(scores) * weights.max().item(), abs=0.006)
        assert [scores[int(c)].item() for c in top] == scores.topk(3).values.tolist()
    assert lines[-2:] == [f"attention  {file}", f"figure     {sample}"]
    with Image.open(sample) as image:
        assert image.info["Title"].startswith("Channel attention of pypi/efficientnet_lite0 on")
    assert sorted(tmp_path.iterdir()) == [sample, file]


def test_json_is_of_the_file(capsys, command, tmp_path):
    assert (
        main([*command, "--json", "--score-clip=2", "--clamp-negative-scores", "--temperature=1"])
        == 0
    )
    values = json.loads(capsys.readouterr().out)
    taps = values.pop("taps")
    assert values == {
        "file": str(tmp_path / "pets.safetensors"),
        "figure": str(tmp_path / "pets.png"),
        "estimator": "gradient",
        "samples": 24,
        "temperature": 1.0,
        "score_clip": 2.0,
        "clamp_negative_scores": True,
    }
    attention = ChannelAttention.load(values["file"])
    assert (attention.temperature, attention.score_clip, attention.clamp_negative_scores) == (
        1,
        2,
        True,
    )
    assert {tap["tap"]: tap["effective_channels"] for tap in taps} == attention.effective_channels
    assert {tap["tap"]: tap["entropy"] for tap in taps} == attention.entropy


def test_it_is_what_train_measures(finished, images, tmp_path):
    out = tmp_path / "a.safetensors"
    assert main(["attention", str(images), f"--out={out}", *SMALL]) == 0
    assert out.read_bytes() == (finished.folder / "attention.safetensors").read_bytes()


@pytest.mark.slow
def test_train_takes_its_file(finished, images, command, tmp_path):
    assert main([*command, "--samples=9", "--taps=blocks.1,blocks.3"]) == 0
    out, file = tmp_path / "run", tmp_path / "pets.safetensors"
    given = ["train", str(images), f"--out={out}", f"--attention={file}", *flags(epochs=1)]
    assert main(given) == 0
    assert (out / "attention.safetensors").read_bytes() == file.read_bytes()
    assert ChannelAttention.load(file).samples == 9
    assert RunResult.load(out).taps == ("blocks.1", "blocks.3")


def test_equal_commands_leave_equal_bytes(command, tmp_path, monkeypatch):
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / name))
        assert main([*command, "--overwrite"]) == 0
        found.append([path.read_bytes() for path in sorted(tmp_path.glob("pets.*"))])
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_what_is_there_is_replaced_if_asked(capsys, command, tmp_path):
    assert main(command) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main([*command, "--overwrite", "--temperature=2"]) == 0
    for path, content in before.items():
        assert path.read_bytes() != content
    assert set(tmp_path.iterdir()) == set(before)


def test_without_a_name_it_goes_to_runs(capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    command = [part for part in command if not part.startswith("--out")]
    for name in ("attention-patterns-now", "attention-patterns-now-2"):
        assert main(command) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[-2:] == [
            f"attention  runs/{name}.safetensors",
            f"figure     runs/{name}.png",
        ]
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_official_is_with_the_taps_and_the_head_of_the_authors(images, tmp_path, monkeypatch):
    seen = []

    def estimate(prepared: Any, config: Any, *, progress: Any) -> NoReturn:
        seen.append(
            (config.paper_protocol, config.attention_source, config.batch_size, config.taps)
        )
        raise UserError("enough")

    monkeypatch.setattr("delta_transfer.runs.attention_report.estimate", estimate)
    command = ["attention", str(images), f"--out={tmp_path / 'a.safetensors'}", *SMALL[:1]]
    assert main([*command, "--preset=paper", "--taps=blocks.1"]) == 2
    assert seen == [(True, "exact", 64, "blocks.1")]


def test_a_full_disk_leaves_no_image_of_another_file(capsys, command, tmp_path, monkeypatch):
    assert main(command) == 0
    capsys.readouterr()

    def full(path: Path, content: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("delta_transfer.runs.attention_report.write_atomically", full)
    assert main([*command, "--overwrite", "--temperature=1"]) == 2
    said = capsys.readouterr().err
    assert "pets.png' could not be written (No space left on device)" in said
    file = tmp_path / "pets.safetensors"
    assert ChannelAttention.load(file).temperature == 1  # which took long to measure
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_one_that_was_broken_off_goes_on(capsys, command, tmp_path, monkeypatch):
    """With the very bytes of one that was not."""
    command = [*command, "--estimator=exact", "--json"]
    cache = tmp_path / "cache"
    monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(cache))
    monkeypatch.setattr("delta_transfer.attention.estimators.checkpoint.WRITE_INTERVAL_S", 0)
    write = EstimateCheckpoint.write

    def broken_off(self: EstimateCheckpoint, state: Any) -> None:
        write(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EstimateCheckpoint, "write", broken_off)
        assert main(command) == 1
    assert capsys.readouterr().err.endswith("rerun the same command to resume\n")
    assert main(command) == 0
    assert f"resuming after {CHUNK_SIZE} samples" in capsys.readouterr().err
    assert not list(cache.rglob("*.checkpoint"))
    file = tmp_path / "pets.safetensors"
    first = file.read_bytes()
    monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "another"))
    assert main([*command, "--overwrite"]) == 0
    assert file.read_bytes() == first


def test_its_images_are_those_that_were_measured_on(command, images, monkeypatch):
    shown = []

    def figure(taps: Any, **options: Any) -> bytes:
        shown.extend(taps)
        return b""

    monkeypatch.setattr("delta_transfer.runs.attention_report.draw_attention_figure", figure)
    assert main([*command, "--samples=1", "--seed=3"]) == 0
    (tap,) = shown
    (position,) = attention_sample_order(
        TrainOptions(data="x", seed=3, attention_samples=1).resolve(), sum(SPLITS["train"])
    )
    label, number = CLASSES[position // SPLITS["train"][0]], position % SPLITS["train"][0]
    with Image.open(images / "train" / label / f"{number}.png") as image:
        expected = ImageOps.fit(image, (112, 112))
    assert len(tap.influential_samples) == 3
    for driver in tap.influential_samples:
        ((sample, name),) = driver.images
        assert name == label
        assert sample.tobytes() == expected.tobytes()

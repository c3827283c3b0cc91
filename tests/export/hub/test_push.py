"""Push runs to a stand-in for the hub, and load them with timm."""

import contextlib
import csv
import dataclasses
import getpass
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import timm.data
import torch
import yaml
from huggingface_hub import ModelCard, constants, snapshot_download
from PIL import Image

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.custom import wrap_network
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.cli.main import main
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.registry import load_data
from delta_transfer.export.hub.card import base_model, model_card
from delta_transfer.export.hub.facts import CardFacts, collect_facts, public_config, public_name
from delta_transfer.export.hub.folder import FILES, write_folder
from delta_transfer.inference.evaluation import calibration_error
from delta_transfer.inference.predictor import Predictor
from delta_transfer.metrics.metrics import MINUS, NO_VALUE
from delta_transfer.metrics.per_target import BinaryTargetMetrics, RegressionTargetMetrics
from delta_transfer.metrics.run_result import ModelSelection, RunResult, comparison_columns
from delta_transfer.report.run_files import PredictionRow, Predictions
from tests.export.test_export import network, saved_run
from tests.hub import Repo, environment, point_to, serve
from tests.networks import conv_net

PATCHES = load_data("skimage/patches", seed=0)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, finished: RunResult) -> Path:
    """Copy the finished run without files that push does not read; read-only."""
    out = tmp_path_factory.mktemp("runs") / "light"
    ignored = shutil.ignore_patterns("checkpoints", "tensorboard", "examples")
    return shutil.copytree(finished.folder, out, ignore=ignored)


@pytest.fixture
def run(light: Path, tmp_path: Path) -> Path:
    return shutil.copytree(light, tmp_path / "runs" / "mine")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serve() as found:
        point_to(found, tmp_path / "hub-cache", monkeypatch)
        yield found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write patches of scikit-image's photographs, of several shapes."""
    folder, split = tmp_path_factory.mktemp("photographs"), PATCHES.test
    files = []
    for number in range(12):
        patch = split.read(split.paths[number * len(split) // 12])
        files.append(folder / f"{number:02}.png")
        patch.crop((0, 0, 40 - number % 7, 40 - number % 5)).save(files[-1])
    return files


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the message of a command that must end with exit code 2."""
    capsys.readouterr()
    assert main(list(args)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err.splitlines()[-1].removeprefix("error: ")


def python_of(card: str) -> str:
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return example


# -------------------------------------------------------------------------------------- round trip


def test_timm_loads_a_pushed_run_and_predicts_the_same(
    run, hub, tmp_path, photographs, capsys, monkeypatch
):
    assert main(["push", str(run), "ada/patterns", "--license=mit"]) == 0
    said = capsys.readouterr()
    repo = hub.repos["ada/patterns"]
    assert len(repo.commits) == 2  # that of the hub's own file, and ours
    assert repo.files.keys() == {*FILES, ".gitattributes"}
    assert not repo.private
    lines = said.out.splitlines()
    assert lines[:2] == [f"address  {hub.url}/ada/patterns", f"commit   {repo.sha}"]
    shown = {line.split()[-1]: line.split()[0] for line in lines[2:]}
    sizes = {name: f"{len(repo.files[name]) / 1024:,.1f}" for name in FILES}
    assert shown == sizes
    assert "exists" not in said.err
    assert not (run / "hub").exists()

    predictor = Predictor(run, device="cpu", num_workers=0)
    found = predictor.predict(photographs)
    expected = np.array([[p.probabilities[c] for c in predictor.classes] for p in found])
    assert expected.std(axis=0).max() > 0.05  # otherwise any network would pass
    loaded = timm.create_model("hf-hub:ada/patterns", pretrained=True).eval()
    assert loaded.pretrained_cfg["label_names"] == list(predictor.classes)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    inputs = torch.stack([transform(Image.open(file).convert("RGB")) for file in photographs])
    with torch.inference_mode():
        answers = loaded(inputs).softmax(dim=1).numpy()
    assert np.abs(answers - expected).max() < 1e-4

    # The card's own example, and the folder by this package.
    monkeypatch.chdir(tmp_path)
    Image.open(photographs[3]).convert("RGB").save("image.jpg", quality=95)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(python_of(repo.files["README.md"].decode()), {})
    (own,) = predictor.predict(["image.jpg"])
    best, probability = printed.getvalue().splitlines()[0].split()
    assert best == own.top_class
    assert float(probability) == pytest.approx(own.probabilities[best], abs=1e-3)
    snapshot_download("ada/patterns", local_dir="patterns")
    (again,) = Predictor("patterns", device="cpu").predict(["image.jpg"])
    assert again == own
    # A folder with the name of the data is not mistaken for it.
    assert main(["export", "patterns", "--format=safetensors"]) == 0
    assert Path("patterns/export/safetensors/model.safetensors").is_file()


@pytest.mark.slow
def test_the_command_and_timm_in_processes_of_their_own(run, tmp_path, photographs):
    """Run them as a user does, configured by the environment only."""
    Image.open(photographs[3]).convert("RGB").save(tmp_path / "image.jpg", quality=95)
    with serve() as found:
        own = {**os.environ, **environment(found, tmp_path / "home")}
        started = {"env": own, "cwd": tmp_path, "check": True, "capture_output": True, "text": True}
        push = [sys.executable, "-m", "delta_transfer", "push", str(run), "ada/patterns"]
        pushed = subprocess.run([*push, "--private"], **started)
        assert f"{found.url}/ada/patterns (private)" in pushed.stdout
        card = found.repos["ada/patterns"].files["README.md"].decode()
        answered = subprocess.run([sys.executable, "-c", python_of(card)], **started)
    (expected,) = Predictor(run, device="cpu").predict([tmp_path / "image.jpg"])
    best, probability = answered.stdout.splitlines()[0].split()
    assert best == expected.top_class
    assert float(probability) == pytest.approx(expected.probabilities[best], abs=1e-3)


def test_an_existing_repository_gets_one_commit(run, hub, capsys):
    hub.repos["ada/mine"] = Repo(commits=[{"README.md": b"old", "thesis.pdf": b"%PDF"}])
    hub.warning = "empty or missing yaml metadata"
    assert main(["push", str(run), "ada/mine"]) == 0
    said = capsys.readouterr().err
    assert (
        f"warning: {hub.url}/ada/mine exists: the new commit replaces README.md and "
        "leaves thesis.pdf unchanged\n"
    ) in said
    assert "warning: Warnings while validating metadata in README.md: - empty or missing" in said
    repo = hub.repos["ada/mine"]
    assert len(repo.commits) == 2
    assert repo.files["thesis.pdf"] == b"%PDF"
    assert repo.files["README.md"].startswith(b"---\n")


def test_private_repositories_are_created_and_checked(run, hub, capsys):
    assert main(["push", str(run), "ada/secret", "--private"]) == 0
    assert hub.repos["ada/secret"].private
    assert f"address  {hub.url}/ada/secret (private)\n" in capsys.readouterr().out
    hub.repos["ada/open"] = Repo()
    said = error_of(capsys, "push", str(run), "ada/open", "--private")
    assert "ada/open exists and is public; nothing is uploaded. Make it private" in said
    assert len(hub.repos["ada/open"].commits) == 1
    assert not any("open" in request and "upload" in request for request in hub.requests)


# ------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "rejects the token for ada/mine (401): it may have expired"),
        (403, "the token may not write to ada/mine (403): use a REPO of your own"),
        (404, "the token may not write to ada/mine (404): use a REPO of your own"),
        (418, "the hub answers 418 (Client error '418"),
    ],
)
def test_refusals_of_the_hub_are_explained(run, hub, capsys, status, says):
    hub.status = status
    assert says in error_of(capsys, "push", str(run), "ada/mine")


def test_another_token_or_namespace_is_rejected(run, hub, capsys, monkeypatch):
    said = error_of(capsys, "push", str(run), "bob/theirs")
    assert "the token may not write to bob/theirs (403)" in said
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    said = error_of(capsys, "push", str(run), "ada/mine")
    assert "the hub rejects the token for ada/mine (401)" in said
    assert "hf_of_nobody" not in said
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    said = error_of(capsys, "push", str(run), "ada/mine")
    assert "push needs a Hugging Face token" in said
    assert "run hf auth login or set HF_TOKEN; --dry-run needs none" in said
    assert (hub.requests, hub.repos) == ([], {})


def test_an_invalid_card_creates_no_repository(run, hub, capsys):
    said = error_of(capsys, "push", str(run), "ada/mine", "--license=my-own")
    assert 'the hub refuses the model card ("license" must be one of apache-2.0' in said
    assert hub.repos == {}


def test_no_connection(run, hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = error_of(capsys, "push", str(run), "ada/mine")
    assert "http://127.0.0.1:9/ada/mine failed" in said
    assert "onnection refused" in said
    assert "check the connection and HF_ENDPOINT" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in error_of(capsys, "push", str(run), "ada/mine")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits of the hub's client between attempts, and skip them."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return waited


def test_an_interrupted_upload_leaves_no_commit_and_can_be_repeated(run, hub, capsys, slept):
    hub.broken = 100
    said = error_of(capsys, "push", str(run), "ada/mine")
    assert "ada/mine failed (" in said
    assert "run the command again" in said
    assert f"An upload is one commit: {hub.url}/ada/mine has all of it or nothing" in said
    assert len(hub.repos["ada/mine"].commits) == 1
    assert len(slept) == 100 - hub.broken - 1 > 0
    hub.broken = 1  # which the client retries by itself
    assert main(["push", str(run), "ada/mine"]) == 0
    assert len(hub.repos["ada/mine"].commits) == 2
    (large,) = hub.stored
    assert len(hub.stored[large]) == (run / "model" / "model.safetensors").stat().st_size


def test_ctrl_c_in_an_upload(run, hub, capsys, monkeypatch):
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.lfs._upload_single_part", stop)
    assert main(["push", str(run), "ada/mine"]) == 1
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert len(hub.repos["ada/mine"].commits) == 1


def test_failed_uploads_by_xet_name_the_variable_to_disable_it(run, hub, capsys, monkeypatch):
    pytest.importorskip("hf_xet", reason="hf_xet is not installed")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    said = error_of(capsys, "push", str(run), "ada/mine")  # the stand-in has no Xet
    assert "GET /api/models/ada/mine/xet-write-token/main" in hub.requests
    assert "if uploads by Xet fail, set HF_HUB_DISABLE_XET=1" in said
    assert len(hub.repos["ada/mine"].commits) == 1


# ----------------------------------------------------------------------------------------- dry run


def test_a_dry_run_writes_a_folder_and_sends_no_request(run, hub, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "ada/patterns", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert hub.requests == []
    folder = run / "hub"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert out.startswith(f"folder   {folder}\nfor      {hub.url}/ada/patterns (not uploaded)")
    assert f"hf upload ada/patterns {folder}\n" in out
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3

    (folder / "README.md").write_text("mine")
    said = error_of(capsys, "push", str(run), "ada/patterns", "--dry-run")
    assert f"--out {folder} is not empty" in said
    assert (folder / "README.md").read_text() == "mine"
    again = ["push", str(run), "ada/patterns", "--dry-run", "--overwrite"]
    assert main([*again, "--license=cc-by-4.0", "--data-name=Noisy patterns"]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "| data | Noisy patterns |" in card.text
    (folder / "thesis.tex").write_text("mine")
    said = error_of(capsys, *again)
    assert "contains files that are not of an export (thesis.tex)" in said
    assert main([*again, f"--out={tmp_path / 'other'}"]) == 0
    assert (tmp_path / "other" / "model.safetensors").is_file()


def test_without_a_dry_run_its_options_are_ignored(run, hub, capsys, tmp_path):
    assert main(["push", str(run), "ada/mine", f"--out={tmp_path / 'out'}"]) == 0
    assert "--out is ignored without --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- the card


def facts_of(run: Path, **options: str | None) -> CardFacts:
    given = {"repo": "ada/patterns", "license": None, "data_name": None, **options}
    return collect_facts(Predictor(run, device="cpu"), **given)


def in_one_line(card: str) -> str:
    """Return the card without line breaks."""
    return " ".join(card.split())


def rows_of(card: str, first: str) -> dict[str, list[str]]:
    """Return the rows of the table with this first heading, by their first cells."""
    (table,) = re.findall(rf"^\| {first} \|.*\n\|[-:|]+\|\n((?:\|.*\n?)+)", card, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines()]
    return {row[0].strip("| "): [cell.strip("| ") for cell in row[1:]] for row in cells}


def test_metrics_are_those_of_the_run(run):
    facts = facts_of(run)
    card = model_card(facts)
    found = json.loads((run / "result.json").read_text())
    names = ("test_accuracy", "linear_probe_test_accuracy")
    assert rows_of(card, "metric")["test accuracy"] == [f"{100 * found[x]:.1f}%" for x in names]
    with (run / "predictions.csv").open() as file:
        header, *lines = csv.reader(file)
    by_class = defaultdict(list)
    for _, label, prediction, *_ in lines:
        by_class[label].append(label == prediction)
    table = rows_of(card, "class")
    assert {name: row[:2] for name, row in table.items()} == {
        name: [str(len(right)), f"{100 * statistics.fmean(right):.1f}%"]
        for name, right in by_class.items()
    }
    # Wilson's interval by its formula, and the calibration error from all probabilities.
    n, p, z = len(lines), found["test_accuracy"], 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"interval (Wilson) is {100 * low:.1f}% to {100 * high:.1f}%" in card
    probabilities = torch.tensor([[float(cell) for cell in line[3:]] for line in lines])
    labels = torch.tensor([header[3:].index(line[1]) for line in lines])
    error = calibration_error(probabilities, labels)
    assert f"off by {100 * error:.1f} points on average" in card
    counts = re.search(
        r"(\d+) training, (\d+) validation, (\d+) test", (run / "train.log").read_text()
    )
    for name, count in zip(("training", "validation", "test"), counts.groups(), strict=True):
        assert f"| {name} images | {count} |" in card


def test_the_counts_are_those_of_the_last_part_of_the_log(run):
    line = "data     patterns: 3 classes, {} training, {} validation, {} test images\n"
    (run / "train.log").write_text(line.format(30, 9, 12) + line.format(28, 8, "no"))
    assert facts_of(run).counts == (28, 8, 0)
    (run / "train.log").write_text("")
    assert facts_of(run).counts is None


def test_the_metadata_is_what_the_hub_reads(run):
    facts = facts_of(run, license="mit", data_name="hf/ada/forms")
    card = ModelCard(model_card(facts))
    values = yaml.safe_load(card.data.to_yaml())
    assert (values["library_name"], values["pipeline_tag"]) == ("timm", "image-classification")
    assert (values["license"], values["metrics"]) == ("mit", ["accuracy"])
    assert values["datasets"] == "ada/forms"
    assert "base_model" not in values  # pypi/efficientnet_lite0 is not on the hub
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_split) == ("image-classification", "test")
    assert (result.dataset_type, result.dataset_name) == ("ada/forms", "hf/ada/forms")
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(RunResult.load(run).test_accuracy, abs=5e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "resnet50.tv_in1k"}, "timm/resnet50.tv_in1k"),
        ({"model": "timm/resnet50"}, timm.get_pretrained_cfg("resnet50").hf_hub_id),
        ({"model": "hf-hub:org/net@v2"}, "org/net"),
        ({"model": "resnet50", "weights": "moco.pth"}, None),
        ({"model": "torchvision/resnet50"}, None),
        ({"model": "pypi/efficientnet_lite0"}, None),
        ({"model": "pretrain-gnns/gin"}, None),
    ],
)
def test_the_base_model_is_named_where_it_is_known(options, expected):
    assert base_model(TrainOptions(data="d", **options).resolve()) == expected


SCORES = {"l2": (0.50, 0.60), "l2sp": (0.55, 0.75), "probe": (0.40, 0.45)}  # by seed


def made_comparison(folder: Path, run: Path) -> Path:
    """Write a comparison of copies of a run with these scores; return one of its runs."""
    for method, scores in SCORES.items():
        for seed, score in enumerate(scores):
            own = shutil.copytree(run, folder / f"{method}-seed{seed}")
            result = dataclasses.replace(
                RunResult.load(own),
                method=method,
                seed=seed,
                test_accuracy=score,
                linear_probe_test_accuracy=SCORES["probe"][seed],
            )
            (own / "result.json").write_text(result.to_json())
            columns = comparison_columns(result.metric)
            values = {**json.loads(result.to_json()), "folder": own.name}
            values["trained_share"] = result.trained_share
            with (folder / "results.csv").open("a", newline="") as file:
                writer = csv.writer(file)
                if (method, seed) == ("l2", 0):
                    writer.writerow(columns)
                writer.writerow([values[name] for name in columns])
    (folder / "compare.yaml").write_text("data: patterns\nmethods: l2,l2sp,probe\n")
    return folder / "l2sp-seed1"


def test_a_run_of_a_comparison_shows_its_table(run, tmp_path):
    own = made_comparison(tmp_path / "compared", run)
    facts = facts_of(own)
    table = rows_of(model_card(facts), "method")
    # With one degree of freedom the 95% interval of a mean of two is 12.706 deviations wide.
    shown = {name: [cell.replace(MINUS, "-") for cell in row] for name, row in table.items()}
    assert shown == {
        "L2-SP": ["65.0%", "14.1", "+10.0 (-53.5 to +73.5)", "+22.5 (-72.8 to +117.8)"],
        "Plain fine-tuning": ["55.0%", "7.1", "", "+12.5 (-19.3 to +44.3)"],
        "Linear probe": ["42.5%", "3.5", "-12.5 (-44.3 to +19.3)", ""],
    }
    said = "This run (method `l2sp`, seed 1) is part of a comparison: test accuracy, 2 seeds"
    assert said in in_one_line(model_card(facts))
    assert list(table) == ["L2-SP", "Plain fine-tuning", "Linear probe"]


def test_a_comparison_that_is_damaged_is_left_out(run, tmp_path, caplog):
    own = made_comparison(tmp_path / "compared", run)
    (tmp_path / "compared" / "results.csv").write_text("Dear Sir")
    facts = facts_of(own)
    assert facts.comparison is None
    assert "the comparison is left out of the model card: " in caplog.text


# -------------------------------------------------------------------------------- private data


def test_no_data_of_the_machine_is_uploaded(run, tmp_path, images):
    config = TrainConfig.load(run / "config.yaml")
    assert str(images) == config.data
    values = yaml.safe_load(config.to_yaml())
    values |= {
        "weights": str(tmp_path / "secret" / "ours.pth"),
        "attention": str(tmp_path / "secret" / "a.safetensors"),
        "data_root": str(tmp_path / "secret"),
        "shifted": str(tmp_path / "secret"),
        "out": str(run),
        "model": f"local-dir:{tmp_path / 'secret'}",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    (run / "evaluation" / "new").mkdir(parents=True)
    (run / "evaluation" / "new" / "evaluation.json").write_text(json.dumps({"data": str(images)}))
    folder = tmp_path / "folder"
    write_folder(Predictor(run, device="cpu"), folder, repo="ada/patterns")
    private = [str(tmp_path), str(images), str(images.parent), str(Path.home()), "secret"]
    private += [str(run), f"/{getpass.getuser()}/", "ours.pth", ".png"]
    for name in FILES:
        content = (folder / name).read_bytes()
        for text in private:
            assert text.encode() not in content, (name, text)
    told = TrainConfig.load(folder / "config.yaml")
    assert (told.data, told.out, told.data_root) == ("(patterns)", None, None)
    assert told.shifted is None
    assert (told.weights, told.attention) == ("weights.pth", "attention.safetensors")
    assert told.model == "local-dir:model"
    assert (told.lr, told.epochs, told.image_size) == (config.lr, config.epochs, config.image_size)
    assert "custom weights" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("skimage/patches", "skimage/patches"),
        ("hf/ada/birds:small", "hf/ada/birds:small"),
        ("hf//srv/ada/birds", "birds"),
        ("../birds/", "birds"),
        ("birds.csv", "birds"),
        ("~", "own images"),
        (".", "own images"),
        ("/Users/ada", "own images"),
        (r"C:\Users\ada\birds", "birds"),
        (r"C:\Users\ada", "own images"),
        (f"/data/{getpass.getuser()}", "own images"),
        (str(Path.home()), "own images"),
    ],
)
def test_data_is_uploaded_by_name_only(data, name):
    assert public_name(data, sample_type="image") == name


def test_options_of_a_named_set_stay():
    config = TrainOptions(data="torchvision/dtd", preset="paper", method="l2", devices=2).resolve()
    told = public_config(config, name="torchvision/dtd")
    assert (told.data, told.preset, told.steps, told.devices) == (config.data, "paper", 9000, 1)


def test_names_are_escaped_in_the_card(run):
    names = ["a|b", "<script>alert(1)</script>", "*stars*"]
    model = json.loads((run / "model" / "config.json").read_text())
    own = model["label_names"]
    model["label_names"] = names
    (run / "model" / "config.json").write_text(json.dumps(model))
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    new = dict(zip(own, names, strict=True))
    with (run / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[new.get(cell, cell) for cell in row] for row in rows])
    facts = facts_of(run, data_name="my | <b>data</b>\n---")
    card = model_card(facts)
    assert "<script" not in card.replace(r"\<script", "")
    assert r"| data | my \| \<b\>data\</b\> --- |" in card
    assert r"a\|b" in card
    assert ModelCard(card).data.eval_results[0].dataset_name == "my | <b>data</b>\n---"


# ---------------------------------------------------------------------------------- other networks


def with_model(run: Path, made: Path) -> Path:
    """Replace the network of a run by another run's."""
    shutil.rmtree(run / "model")
    shutil.copytree(made / "model", run / "model")
    (run / "predictions.csv").unlink()
    return run


def test_a_torchvision_network_is_loaded_by_this_package(run, tmp_path, photographs, capsys):
    made = saved_run(tmp_path / "made", network("torchvision/shufflenet_v2_x0_5"))
    with_model(run, made)
    out = tmp_path / "out"
    assert main(["push", str(run), "ada/shuffle", "--dry-run", f"--out={out}"]) == 0
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "delta-transfer"
    assert "import timm" not in card.text
    assert "delta-transfer predict shuffle new_images/" in card.text
    assert "hf-hub:" not in card.text
    assert "Accuracy per class" not in card.text  # without predictions
    again, before = (Predictor(folder, device="cpu").predict(photographs) for folder in (out, run))
    assert again == before


def test_a_custom_network_cannot_be_pushed_by_the_command(run, tmp_path, capsys):
    made = saved_run(tmp_path / "made", wrap_network(conv_net(), num_outputs=3, image_size=24))
    with_model(run, made)
    said = error_of(capsys, "push", str(run), "ada/own", "--dry-run")
    assert "trained from Python" in said
    predictor = Predictor(run, device="cpu", network=conv_net())
    write_folder(predictor, tmp_path / "out", repo="ada/own")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A custom network, fine-tuned by delta-transfer" in card
    assert "efficientnet" not in card  # the default of --model


def test_a_run_on_molecules(tmp_path, capsys):
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    pytest.importorskip("rdkit", reason="RDKit is not installed")
    torch.manual_seed(0)
    backbone = load_graph_backbone("pyg/GIN-2x8", num_outputs=1, spec=GraphSpec(), pretrained=False)
    torch.save(backbone.module.state_dict(), tmp_path / "weights.pth")
    rows = [f"{'C' * (2 + number % 20)}{'ON'[number % 2]},{number % 2}" for number in range(40)]
    (tmp_path / "alcohols.csv").write_text("\n".join(["smiles,alcohol", *rows]))
    made, options = tmp_path / "run", "--method=probe --split=random --test-split=0.25 --device=cpu"
    given = ["--model=pyg/GIN-2x8", f"--weights={tmp_path / 'weights.pth'}", f"--out={made}"]
    data = str(tmp_path / "alcohols.csv")
    assert main(["train", data, "--smiles-column=smiles", *given, *options.split()]) == 0
    out = tmp_path / "out"
    assert main(["push", str(made), "ada/alcohols", "--dry-run", f"--out={out}"]) == 0
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("delta-transfer", "graph-ml")
    assert card.data.metrics == ["roc_auc"]
    assert "molecules" in card.data.tags
    assert "timm" not in card.text.replace("timm 1", "")
    assert "image" not in card.text
    assert "of **alcohols** for 1 binary target." in card.text
    assert "The split was random" in card.text
    assert "delta-transfer predict alcohols 'CC(=O)Oc1ccccc1C(O)=O' more.smi" in card.text
    found = RunResult.load(made)
    (known, yes, score) = rows_of(card.text + "\n", "target")["alcohol"]
    assert (known, score) == ("10", f"{100 * found.test_roc_auc:.1f}")
    assert 0 < int(yes) < 10
    asked = ["CCCO", "CCN"]
    again, before = (Predictor(folder, device="cpu").predict(asked) for folder in (out, made))
    assert again == before
    assert str(tmp_path) not in "".join(
        (out / name).read_text() for name in FILES if name != "model.safetensors"
    )


def test_epochs_and_what_was_chosen_by_validation_are_described(run):
    facts = facts_of(run)
    official = dataclasses.replace(
        facts, config=TrainOptions(data="(patterns)", preset="paper", method="delta").resolve()
    )
    probe = dataclasses.replace(
        facts, result=dataclasses.replace(facts.result, method="probe", test_accuracy=None)
    )
    folds = dataclasses.replace(facts.result, model_selection=selection(folds=3))
    folded = model_card(dataclasses.replace(facts, result=folds))
    assert "the weights were chosen by them.\n" in model_card(facts)
    assert "The test of this run" not in model_card(facts)
    assert "| epochs | 3 |" in model_card(facts)
    assert "the weights were chosen by them. They are those of networks not" in folded
    assert "averaged the logits of ten crops" in model_card(official)
    for other in (official, dataclasses.replace(probe, split="validation")):
        assert "the weights were chosen" not in model_card(other)
    assert "| epochs |" not in model_card(probe)
    tested = in_one_line(model_card(dataclasses.replace(probe, split="validation")))
    assert "There was no test split. The metrics are those of the validation images. - " in tested
    assert "test accuracy |" not in tested


def selection(*, folds: int = 0) -> ModelSelection:
    return ModelSelection(
        strengths=(0.1, 0.001),
        mixing_coefficients=(0.25, 0.375, 0.375),
        losses={"0/50/50": 0.5, "25/37.5/37.5": 0.4},
        folds=folds,
        averaged=True,
        averages_folds=True,
    )


@pytest.mark.parametrize(
    ("folds", "suffix"), [(0, ""), (3, ", mean of 3 folds and on all samples")]
)
def test_an_average_of_strengths_is_described(run, folds, suffix):
    facts = facts_of(run)
    result = dataclasses.replace(facts.result, model_selection=selection(folds=folds))
    expected = (
        "| weights | 25% initial, 37.5% trained with strength 0.1, 37.5% trained with strength "
        f"0.001{suffix} |\n"
    )
    assert expected in model_card(dataclasses.replace(facts, result=result))


def test_many_classes_are_cut_short(run):
    names = tuple(f"c{number}" for number in range(130))
    rows = tuple(
        PredictionRow("", name, names[number % 120], 0.5)
        for number, name in enumerate(names)
        for _ in range(2)
    )
    facts = dataclasses.replace(facts_of(run), classes=names, predictions=Predictions(names, rows))
    card = model_card(facts)
    assert "c98, c99 and 30 more (`config.json` has all) |" in card
    assert "80 classes with higher accuracies are omitted.\n" in card
    table = rows_of(card, "class")
    assert len(table) == 50
    assert table["c120"] == ["2", "0.0%", "c0 (2)"]
    assert table["c0"] == ["2", "100.0%", ""]


def test_the_targets_of_other_tasks(run):
    facts = facts_of(run)
    binary = tuple(BinaryTargetMetrics(f"q|{n}", 1000 + n, n, n / 100, 0.5) for n in range(70))
    values = (
        RegressionTargetMetrics("logP", 12, 0.58312, 0.4, None),
        RegressionTargetMetrics("none", 0, None, None, None),
    )
    roc_auc, rmse = (
        dataclasses.replace(
            facts.result, metric_name=metric, sample_type="graph", **{f"test_{metric}": 0.5}
        )
        for metric in ("roc_auc", "rmse")
    )
    graphs = dataclasses.replace(
        facts,
        sample_type="graph",
        input_spec=GraphSpec(node_features="numbers", num_node_features=7),
        data="tu/A & B\n```",
        predictions=None,
    )
    card = model_card(dataclasses.replace(graphs, result=roc_auc, columns=binary))
    assert "for 3 binary targets." in card
    assert "Results per target on the test split. 20 targets are omitted.\n" in card
    assert rows_of(card, "target")[r"q\|7"] == ["1,007", "7", "7.0"]
    assert len(rows_of(card, "target")) == 50
    assert (
        "\ndelta-transfer evaluate patterns tu/A & B ```\n```\n" in card
    )  # the code block does not end early
    card = model_card(dataclasses.replace(graphs, result=rmse, columns=values))
    assert "for 3 regression targets." in card
    assert "| target | known labels | RMSE |\n|---|---:|---:|\n" in card
    assert rows_of(card, "target") == {"logP": ["12", "0.583"], "none": ["0", NO_VALUE]}


def test_an_unfinished_run_is_rejected(run, capsys):
    (run / "result.json").unlink()
    said = error_of(capsys, "push", str(run), "ada/mine", "--dry-run")
    assert "no finished run" in said
    assert not (run / "hub").exists()

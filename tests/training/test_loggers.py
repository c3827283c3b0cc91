"""Services that are not installed here are played by modules of the same names."""

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning.pytorch.loggers.mlflow as of_mlflow
import lightning.pytorch.loggers.wandb as of_wandb
import pytest
import yaml

from delta_transfer.config.train import LOGGERS
from delta_transfer.training.loggers import check_loggers, make_loggers
from tests.networks import conv_net
from tests.training.test_fit import plan, run

Logged = list[tuple[str, Any]]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Run:
    """A run of W&B or Trackio."""

    def __init__(self, said: Logged, **options: Any) -> None:
        said.append(("init", options))
        self.config = SimpleNamespace(
            update=lambda values, **more: said.append(("config", dict(values)))
        )
        self.log = lambda metrics, step=None: said.append(("log", {**metrics, "at": step}))
        self.finish = lambda: said.append(("finish", None))


@pytest.fixture
def wandb(monkeypatch) -> Logged:
    said: Logged = []
    monkeypatch.setattr(of_wandb, "_WANDB_AVAILABLE", True)
    made = module(monkeypatch, "wandb", run=None, init=lambda **options: Run(said, **options))
    made.__path__ = []
    module(monkeypatch, "wandb.sdk").__path__ = []
    module(monkeypatch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    module(monkeypatch, "wandb.wandb_run", Run=type("Other", (), {}))
    return said


@pytest.fixture
def trackio(monkeypatch) -> Logged:
    said: Logged = []
    module(monkeypatch, "trackio", init=lambda **options: Run(said, **options))
    return said


@pytest.fixture
def mlflow(monkeypatch) -> Logged:
    said: Logged = []

    class Client:
        def __init__(self, uri: str) -> None:
            said.append(("init", uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(lifecycle_stage="active", experiment_id=name)

        def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
            said.append(("run", (experiment_id, tags["name"])))
            return SimpleNamespace(info=SimpleNamespace(run_id="1"))

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            if params:
                said.append(("config", {one.key: one.value for one in params}))
            else:
                said.append(("log", {one.key: one.value for one in metrics}))

        def get_run(self, run_id: str) -> bool:
            return True

        def set_terminated(self, run_id: str, status: str) -> None:
            said.append(("finish", status))

    monkeypatch.setattr(of_mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(of_mlflow, "_get_resolve_tags", lambda: lambda tags: tags)
    made = module(monkeypatch, "mlflow", set_tracking_uri=lambda uri: None)
    made.__path__ = []
    module(monkeypatch, "mlflow.tracking", MlflowClient=Client)
    module(monkeypatch, "mlflow.entities", Metric=SimpleNamespace, Param=SimpleNamespace)
    module(monkeypatch, "mlflow.utils").__path__ = []
    module(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="name")
    return said


def fitted(folder: Path, *names: str) -> list[dict[str, str]]:
    """Trains below a folder with options; gives the rows of `metrics.csv`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": "pets", "epochs": 2}))
    what = plan(folder / "strength-0.1")
    run(conv_net(), type(what)(**{**vars(what), "loggers": names}))
    with (folder / "strength-0.1" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_service_hears_what_the_file_says(tmp_path, monkeypatch, request, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    said = request.getfixturevalue(name)
    rows = fitted(tmp_path / "pets-l2", "csv", name)
    logged = [values for what, values in said if what == "log"]
    losses = [float(values["train_loss"]) for values in logged if "train_loss" in values]
    assert losses == pytest.approx([float(r["train_loss"]) for r in rows if r["train_loss"]])
    losses = [float(values["val_loss"]) for values in logged if "val_loss" in values]
    assert losses == pytest.approx([float(row["val_loss"]) for row in rows if row["val_loss"]])
    assert len(losses) == 3  # the start, and two epochs
    assert [what for what, _ in said].count("init") == 1
    assert [what for what, _ in said][-1] == "finish"
    (options,) = [values for what, values in said if what == "config"]
    assert {key: str(value) for key, value in options.items()} == {"data": "pets", "epochs": "2"}
    assert not (tmp_path / "pets-l2" / "strength-0.1" / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_called_as_its_folder_and_ends_after_an_error(tmp_path, request, name):
    said = request.getfixturevalue(name)

    def fail(*args: Any) -> Any:
        raise RuntimeError("no loss")

    what = plan(tmp_path / "pets-l2" / "folds" / "1")
    (tmp_path / "pets-l2" / "config.yaml").write_text("data: pets\n")
    what = type(what)(**{**vars(what), "val_dataloader": None, "loggers": [name]})
    with pytest.raises(RuntimeError, match="no loss"):
        run(conv_net(), what, loss=fail)
    (started,) = [values for kind, values in said if kind == "init"]
    assert (started["name"], started["project"]) == ("pets-l2/folds/1", "delta-transfer")
    assert ("finish", None) in said


def test_where_mlflow_keeps_runs(tmp_path, monkeypatch, mlflow):
    (tmp_path / "config.yaml").write_text("data: pets\n")
    for given, expected in ((None, "sqlite:///mlflow.db"), ("http://here", "http://here")):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if given:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        make_loggers(["mlflow"], tmp_path)
        assert [value for what, value in mlflow if what == "init"][-1] == expected
    assert ("run", ("delta-transfer", tmp_path.name)) in mlflow


def test_the_file_is_always_written_and_tensorboard_if_asked(tmp_path):
    assert [type(found).__name__ for found in make_loggers([], tmp_path)] == ["CSVLogger"]
    names = ["tensorboard", "csv"]
    found = [type(one).__name__ for one in make_loggers(names, tmp_path)]
    assert found == ["CSVLogger", "TensorBoardLogger"]


def test_what_is_there_is_checked_for(wandb, trackio, mlflow):
    check_loggers(LOGGERS)

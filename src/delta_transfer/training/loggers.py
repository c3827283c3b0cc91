"""Loggers of a fit: CSV, TensorBoard, W&B, MLflow and Trackio."""

import importlib
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import lightning
import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities import rank_zero_only

from delta_transfer.errors import EnvironmentError

PROJECT = "delta-transfer"


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed.

    Raises:
        EnvironmentError: naming the extra to install.
    """
    for name in names:
        if name in _SERVICES:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise EnvironmentError(
                    f"`loggers={name}` needs the package {name} ({error}): pip install "
                    f"'delta-transfer[{name}]', or leave it out"
                ) from error


def make_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """Return the loggers of a fit; always with `metrics.csv`, which reports are made from.

    Args:
        names: `csv`, `tensorboard`, `wandb`, `mlflow`, `trackio`.
        folder: output folder of the fit.
    """
    loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    for name, make in _SERVICES.items():
        if name in names:
            run, options = _run_of(folder)
            logger = make(run, folder)
            logger.log_hyperparams(options)
            loggers.append(logger)
    return loggers


@final
class FinishLoggers(lightning.Callback):
    """Finishes the run at a service after the fit, so that the next fit starts a new one."""

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        """Finish after the fit, not after the validation of the initialization before it."""
        if stage == "fit":
            self._end(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, module: Any, exception: BaseException
    ) -> None:
        """Finish after an error too."""
        self._end(trainer)

    def _end(self, trainer: lightning.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger | TrackioLogger):
                logger.experiment.finish()


@final
class TrackioLogger(Logger):
    """Logger for Trackio, which Lightning lacks.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run
        self._experiment: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The Trackio run, in the first process only."""
        if self._experiment is None:
            init = importlib.import_module("trackio").init
            self._experiment = init(project=PROJECT, name=self._run, resume="allow", embed=False)
        return self._experiment

    @property
    def name(self) -> str:
        """The project."""
        return PROJECT

    @property
    def version(self) -> str:
        """The run."""
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **more: Any) -> None:
        """Add the options of the run to its configuration."""
        self.experiment.config.update(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of a step."""
        self.experiment.log(dict(metrics), step=step)


def _wandb(run: str, folder: Path) -> Logger:
    return WandbLogger(name=run, project=os.environ.get("WANDB_PROJECT", PROJECT), save_dir=folder)


def _mlflow(run: str, folder: Path) -> Logger:
    # MLflow's own default; Lightning's is a folder, which MLflow has deprecated.
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return MLFlowLogger(experiment_name=PROJECT, run_name=run, tracking_uri=uri)


_SERVICES: dict[str, Callable[[str, Path], Logger]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": lambda run, folder: TrackioLogger(run),
}
"""By the names of their packages."""


def _run_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of a fit at a service, from its folder, and the options of its run."""
    for parent in (folder, *folder.parents):
        file = parent / "config.yaml"
        if file.is_file():
            options: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            name = parent.resolve().name
            return "/".join([name, *folder.relative_to(parent).parts]), options
    return folder.name, {}

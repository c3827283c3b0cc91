"""One run from its options to its folder: the only place that knows every part."""

import dataclasses
import functools
import logging
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.backbones.saved import save_model
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import Split, Task
from delta_transfer.errors import UserError
from delta_transfer.methods.registry import check_classifier, method_of
from delta_transfer.metrics.metrics import Metric
from delta_transfer.metrics.objectives import Classes
from delta_transfer.metrics.run_result import RunResult, Where
from delta_transfer.report.run_page import write_run_report
from delta_transfer.runs.attention import given_attention
from delta_transfer.runs.cost import SPENT, Spent
from delta_transfer.runs.folder import LOG, check_folder, default_folder, make_folder, tidy
from delta_transfer.runs.lr_search import settle
from delta_transfer.runs.model_soup import select
from delta_transfer.runs.plan import Tuning
from delta_transfer.runs.predictions import write_examples, write_predictions
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import Prepared
from delta_transfer.runs.selection import Selected
from delta_transfer.runs.summary import announce, conclude
from delta_transfer.runs.validation import check, check_task, for_several
from delta_transfer.training.inference import CropAverage, predict_answers
from delta_transfer.training.loaders import evaluation_loader
from delta_transfer.utils.devices import find_device
from delta_transfer.utils.distributed import from_main, in_shares, is_main, joined, processes
from delta_transfer.utils.environment import describe, versions
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import locked
from delta_transfer.utils.logging import log_to
from delta_transfer.utils.memory import PeakMemory
from delta_transfer.utils.module_state import deterministic

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, *, network: nn.Module | None = None, spec: InputSpec | None = None
) -> RunResult:
    """Fine-tunes a network on pictures, molecules or graphs and leaves a run folder.

    Args:
        config: the options.
        network: a pretrained network of your own with a linear head, in place of the one that
            `config.model` names; it is copied.
        spec: how pictures are prepared for that network.

    Returns:
        The run's figures; `folder` says where it lies.

    Raises:
        UserError: if an option, the data or the network is not as it must be: nothing is written
            then. Or if training diverges: the run's folder keeps the best checkpoint until then.

    Example:
        >>> from delta_transfer import TrainConfig, train
        >>> result = train(TrainConfig(data="pictures"))  # doctest: +SKIP
    """
    started = time.perf_counter()
    if network is None and spec is not None:
        raise UserError(
            "spec goes with a network of your own: train(config, network=..., spec=...)"
        )
    if network is not None:
        config = dataclasses.replace(config, model=type(network).__name__)
    kind = functools.partial(_device_kind, config)
    with joined(kind, devices=config.devices, num_nodes=config.num_nodes):
        check(config)
        if processes() > 1:
            config = for_several(config)
        if config.resume and config.out is None:
            raise UserError("--resume goes with --out, the folder of the run to go on with")
        folder = Path(config.out).expanduser() if config.out else default_folder(config)
        if from_main(lambda: _check_folder(folder, config)):
            return from_main(lambda: _finished(folder))
        suits = functools.partial(check_task, config)
        prepared = prepare(config, network=network, spec=spec, check=suits)
        return train_prepared(prepared, config, folder, started=started)


def _device_kind(config: TrainConfig) -> str:
    return find_device(config.device).type


def _check_folder(folder: Path, config: TrainConfig) -> bool:
    """Checks that a run may be written into a folder; whether it holds it finished already."""
    check_folder(folder, config)
    return config.resume and (folder / "result.json").is_file()


def train_prepared(
    prepared: Prepared, config: TrainConfig, folder: Path, *, started: float
) -> RunResult:
    """`train` for data, network and probe that are there already.

    Args:
        prepared: what `prepare` made of the same options, whatever the method.
        config: the options.
        folder: of the run; emptied if it holds an old one.
        started: `time.perf_counter()` at the start of the run.
    """
    memory = PeakMemory(prepared.device)
    tuning = Tuning(
        config=config,
        method=method_of(config),
        epochs=config.count_epochs(len(prepared.task.train)),
        attention=given_attention(prepared, config),
    )
    check_classifier(tuning.method, prepared.backbone.classifier, config.model)
    with ExitStack() as held:
        from_main(lambda: held.enter_context(locked(folder)))
        from_main(lambda: make_folder(folder, overwrite=config.overwrite, resume=config.resume))
        spent = Spent(folder, started=started, memory=memory, resume=config.resume)
        if is_main():
            tuning = dataclasses.replace(tuning, saved=spent.save)
        return _train(prepared, tuning, folder, spent)


def _train(prepared: Prepared, tuning: Tuning, folder: Path, spent: Spent) -> RunResult:
    """In a folder that is this process's own."""
    config = tuning.config
    header = (*describe(), *prepared.description)
    log = log_to(folder / LOG, header, resume=config.resume)
    try:
        with log if is_main() else nullcontext(), deterministic(config.deterministic):
            if is_main():
                write_atomically(folder / "config.yaml", config.to_yaml())
            announce(prepared, tuning)
            tuning = settle(prepared, tuning, folder)
            result = _select_and_finish(prepared, tuning, folder, spent)
            conclude(result)
    except BaseException as error:
        if not list(folder.glob("**/*.ckpt")) and not (folder / "model").exists():
            if is_main():
                shutil.rmtree(folder, ignore_errors=True)  # there is nothing worth keeping
        elif isinstance(error, KeyboardInterrupt):
            but = " and without --overwrite" if config.overwrite else ""
            raise KeyboardInterrupt(
                f"{str(error) or 'interrupted'}; the same command with --out {folder} --resume"
                f"{but} goes on"
            ) from error
        raise
    return result


def _select_and_finish(prepared: Prepared, tuning: Tuning, folder: Path, spent: Spent) -> RunResult:
    selected = select(prepared, tuning, folder)
    test = _test(selected.prepared, tuning.config, selected.tuned.network)

    def finish() -> RunResult:
        result = _finish(selected, tuning, folder, spent, test=test)
        write_run_report(folder)
        return result

    return from_main(finish)


def _finished(folder: Path) -> RunResult:
    """A run that is over, of which the report alone may be missing."""
    logger.info("%s is finished: there is nothing to go on with", folder)
    with locked(folder):
        tidy(folder)
        _clear(folder)
        if not (folder / "report.html").is_file():
            write_run_report(folder)
    result = RunResult.load(folder)
    conclude(result)
    return result


def _finish(
    selected: Selected,
    tuning: Tuning,
    folder: Path,
    spent: Spent,
    *,
    test: Tensor | None,
) -> RunResult:
    """Measures the final network and writes what the run leaves behind."""
    prepared, network = selected.prepared, selected.tuned.network
    task, method = prepared.task, tuning.method
    probe = prepared.probe_answers["test"]
    if task.test is not None and test is not None and probe is not None:
        shown, answers, beside = task.test, test, probe
    else:
        shown, answers, beside = selected.held_out, selected.answers, selected.probe
    path, objective = folder / "predictions.csv", task.objective
    write_predictions(path, shown, answers, task.classes, objective)
    spec = prepared.backbone.input
    if isinstance(spec, GraphSpec) and spec.node_features == "atoms":
        from delta_transfer.runs.predictions import write_molecules  # which needs an extra

        taps = selected.tuned.taps
        write_molecules(folder, shown, network=network, source=prepared.source, taps=taps)
    elif task.kind == "pictures" and isinstance(objective, Classes):
        write_examples(folder, shown, answers, beside, task.classes)
    (folder / "model").mkdir(exist_ok=True)
    save_model(
        folder / "model", prepared.backbone, network, classes=task.classes, objective=objective
    )
    cost = spent.cost
    result = RunResult(
        folder=folder,
        method=method.name,
        seed=tuning.config.seed,
        samples_per_class=tuning.config.samples_per_class,
        metric=task.metric,
        **_figures(task, "test", test, task.test),
        **_figures(task, "val", selected.answers, selected.held_out),
        **_figures(task, "linear_probe_test", probe, task.test),
        **_figures(task, "linear_probe_val", selected.probe, selected.held_out),
        best_epoch=selected.epoch,
        epochs=tuning.epochs if method.trains else 0,
        refitted=selected.refitted,
        seconds=cost.seconds,
        memory=cost.memory,
        pictures=len(task.train),
        sample=task.noun,
        classes=len(task.classes),
        strength=_strength(selected, tuning),
        strength_search=selected.search,
        taps=selected.tuned.taps,
        versions=versions(),
    )
    write_atomically(folder / "result.json", result.to_json())
    _clear(folder)
    return result


def _clear(folder: Path) -> None:
    """Deletes what only a run that is not finished needs."""
    (folder / SPENT).unlink(missing_ok=True)
    for before in folder.glob("**/before.ckpt"):
        before.unlink()
    for fold in folder.glob("**/folds/*"):
        shutil.rmtree(fold / "checkpoints", ignore_errors=True)


def _strength(selected: Selected, tuning: Tuning) -> float | None:
    """Of the penalty; found by auto, the geometric mean; of the probe, its own."""
    if not tuning.method.trains:
        return selected.prepared.probe.strength
    if selected.search is None:
        return tuning.strength
    shares = selected.search.shares[1:]
    if not sum(shares):
        return None  # the start alone: no strength is strong enough
    logs = [math.log(strength) for strength in selected.search.strengths]
    mean = sum(share * log for share, log in zip(shares, logs, strict=True)) / sum(shares)
    return float(f"{math.exp(mean):.6g}")


def _test(prepared: Prepared, config: TrainConfig, network: nn.Module) -> Tensor | None:
    """The final network's answers to the test split, if there is one."""
    split, spec = prepared.task.test, prepared.backbone.input
    if split is None:
        return None
    asked = CropAverage(network) if config.official else network

    def ask(positions: Sequence[int]) -> tuple[Tensor]:
        loader = evaluation_loader(split.subset(positions), spec, config)
        return (predict_answers(asked, loader, prepared.task.objective),)

    return in_shares(len(split), config.batch_size, ask)[0]


def _figures(
    task: Task, where: Where, answers: Tensor | None, split: Split | None
) -> dict[str, Any]:
    """What there is to say of answers, by the names of `RunResult`."""
    if answers is None or split is None:
        return {}
    metrics: list[Metric] = [task.objective.measure.name]
    if where == "test" and isinstance(task.objective, Classes):
        metrics.append("mean_class_accuracy")
    found = {f"{where}_{m}": task.objective.score(answers, split.targets, m) for m in metrics}
    return {name: None if math.isnan(score) else score for name, score in found.items()}

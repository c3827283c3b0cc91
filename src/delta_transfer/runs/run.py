"""A run from its options to its finished folder."""

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
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import ConfigError
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.run_result import MetricPrefix, ProbeComparison, RunResult
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.report.run_page import write_run_report
from delta_transfer.runs.cost import USAGE_FILE, ResourceTracker
from delta_transfer.runs.folder import (
    LOG_FILE,
    check_folder,
    default_folder,
    make_folder,
    remove_run,
    remove_temporary_files,
)
from delta_transfer.runs.lr_search import resolve_lr
from delta_transfer.runs.plan import FineTunePlan, make_plan
from delta_transfer.runs.predictions import write_examples, write_molecules, write_predictions
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.retention import CORRUPTIONS_FILE, Retention, measure_run
from delta_transfer.runs.selection import FINAL_FOLDER, SelectionResult, select_model
from delta_transfer.runs.summary import log_start, log_summary
from delta_transfer.runs.validation import adapt_to_processes, check_data, check_run_config
from delta_transfer.training.checkpoints import PREVIOUS
from delta_transfer.training.inference import CropAverage, predict_dataloader
from delta_transfer.utils.devices import find_device
from delta_transfer.utils.distributed import (
    init_process_group,
    is_rank_zero,
    run_on_main_and_broadcast,
    shard_and_gather,
    world_size,
)
from delta_transfer.utils.environment import describe, versions
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import lock_folder
from delta_transfer.utils.logging import log_to
from delta_transfer.utils.memory import PeakMemory
from delta_transfer.utils.module_state import deterministic_algorithms

logger = logging.getLogger(__name__)

LEAST_STRENGTH = 1e-3  # counts for a strength of 0 in a geometric mean


def train(
    options: TrainOptions | TrainConfig,
    *,
    network: nn.Module | None = None,
    spec: InputSpec | None = None,
) -> RunResult:
    """Fine-tune a network on images, molecules or graphs and write a run folder.

    Args:
        options: the options.
        network: your own pretrained network with a linear head, instead of `options.model`; it is
            copied.
        spec: how images are prepared for that network.

    Returns:
        The run's metrics, and its `folder`.

    Raises:
        UserError: if options, data or network are invalid, before a folder is made; or if training
            diverges, after which the folder contains the last checkpoint.

    Example:
        >>> from delta_transfer import TrainOptions, train
        >>> result = train(TrainOptions(data="images"))  # doctest: +SKIP
    """
    started = time.perf_counter()
    if network is None and spec is not None:
        raise ConfigError("`spec` needs `network`: train(options, network=..., spec=...)")
    config = options.resolve()
    if network is not None:
        config = dataclasses.replace(config, model=type(network).__name__)
    device = find_device(config.device)
    with init_process_group(device.type, devices=config.devices, num_nodes=config.num_nodes):
        check_run_config(config, device=device)
        if world_size() > 1:
            config = adapt_to_processes(config)
        if config.resume and config.out is None:
            raise ConfigError("`resume` needs `out`, the folder of the run to resume")
        folder = Path(config.out).expanduser() if config.out else default_folder(config)
        if run_on_main_and_broadcast(lambda: _check_folder(folder, config)):
            return run_on_main_and_broadcast(lambda: _load_finished_run(folder))
        check = functools.partial(check_data, config)
        setup = prepare(config, network=network, spec=spec, check=check, device=device)
        return train_prepared(setup, config, folder, started=started)


def _check_folder(folder: Path, config: TrainConfig) -> bool:
    """Check that a run may be written to a folder; return True if it is finished there."""
    check_folder(folder, config)
    return config.resume and (folder / "result.json").is_file()


def train_prepared(
    setup: RunSetup, config: TrainConfig, folder: Path, *, started: float
) -> RunResult:
    """Fine-tune a prepared network, as `train` does, and write the run folder.

    Args:
        setup: from `prepare` with the same options, whatever the method.
        config: the options.
        folder: folder of the run; with `overwrite` an older run in it is deleted.
        started: `time.perf_counter()` at the start of the run.

    Returns:
        The run's metrics, and its `folder`.

    Raises:
        UserError: if the network does not suit the method, another process writes to the folder,
            or training diverges.
    """
    memory = PeakMemory(setup.device)
    plan = make_plan(setup, config)
    with ExitStack() as stack:
        run_on_main_and_broadcast(lambda: stack.enter_context(lock_folder(folder)))
        run_on_main_and_broadcast(
            lambda: make_folder(folder, overwrite=config.overwrite, resume=config.resume)
        )
        resources = ResourceTracker(folder, started=started, memory=memory, resume=config.resume)
        if is_rank_zero():
            plan = dataclasses.replace(plan, on_checkpoint=resources.save)
        return _train(plan, folder, resources)


def _train(plan: FineTunePlan, folder: Path, resources: ResourceTracker) -> RunResult:
    config = plan.config
    header = (*describe(), *plan.setup.description)
    path = folder / LOG_FILE  # exists after a run that failed early
    log = log_to(path, header, resume=config.resume or path.is_file())
    try:
        with (
            log if is_rank_zero() else nullcontext(),
            deterministic_algorithms(config.deterministic),
        ):
            if is_rank_zero():
                write_atomically(folder / "config.yaml", config.to_yaml())
            log_start(plan)
            plan = resolve_lr(plan, folder)
            result = _select_and_finalize(plan, folder, resources)
            log_summary(result)
    except BaseException as error:
        if not list(folder.glob("**/*.ckpt")) and not (folder / "model").exists():
            if is_rank_zero():  # nothing can be resumed; the log says why
                remove_run(folder, keep_log=not isinstance(error, KeyboardInterrupt))
        elif isinstance(error, KeyboardInterrupt):
            but = " and without --overwrite" if config.overwrite else ""
            raise KeyboardInterrupt(
                f"{str(error) or 'interrupted'}; to resume, rerun the command with --out {folder} "
                f"--resume{but}"
            ) from error
        raise
    return result


def _select_and_finalize(plan: FineTunePlan, folder: Path, resources: ResourceTracker) -> RunResult:
    selected = select_model(plan, folder)
    test = _test(plan, selected.network)
    retention = measure_run(selected)

    def finalize() -> RunResult:
        result = _finalize(selected, plan, folder, resources, test=test, retention=retention)
        write_run_report(folder)
        return result

    return run_on_main_and_broadcast(finalize)


def _load_finished_run(folder: Path) -> RunResult:
    """Return the result of a finished run, whose report alone may be missing."""
    logger.info("%s is finished: nothing to resume", folder)
    with lock_folder(folder):
        remove_temporary_files(folder)
        _clear(folder)
        if not (folder / "report.html").is_file():
            write_run_report(folder)
    result = RunResult.load(folder)
    log_summary(result)
    return result


def _finalize(
    selected: SelectionResult,
    plan: FineTunePlan,
    folder: Path,
    resources: ResourceTracker,
    *,
    test: Tensor | None,
    retention: Retention,
) -> RunResult:
    """Write the final network, its predictions and its metrics."""
    setup, network = selected.setup, selected.network
    task, method = setup.task, plan.method
    probe = setup.probe_predictions["test"]
    if task.test is not None and test is not None and probe is not None:
        split, predictions, probe_predictions = task.test, test, probe
    else:
        split, predictions = selected.held_out, selected.predictions
        probe_predictions = selected.probe_predictions
    path, task_type = folder / "predictions.csv", task.task_type
    write_predictions(path, split, predictions, task.classes, task_type)
    spec = setup.backbone.input_spec
    if isinstance(spec, GraphSpec) and spec.node_features == "atoms":
        taps = selected.taps
        write_molecules(folder, split, network=network, source=setup.source, taps=taps)
    elif task.kind == "images" and isinstance(task_type, Multiclass):
        write_examples(folder, split, predictions, probe_predictions, task.classes)
    retention.save(folder / CORRUPTIONS_FILE)
    (folder / "model").mkdir(exist_ok=True)
    save_model(folder / "model", setup.backbone, network, classes=task.classes, task_type=task_type)
    cost = resources.usage
    result = RunResult(
        folder=folder,
        method=method.name,
        seed=plan.config.seed,
        samples_per_class=plan.config.samples_per_class,
        metric_name=task.metric,
        **_metric_fields(task, "test", test, task.test),
        **_metric_fields(task, "val", selected.predictions, selected.held_out),
        **_metric_fields(task, "linear_probe_test", probe, task.test),
        **_metric_fields(task, "linear_probe_val", selected.probe_predictions, selected.held_out),
        **retention.result_fields(),
        epochs=plan.epochs if method.trains_network else 0,
        wall_time_s=cost.wall_time_s,
        peak_memory_mib=cost.peak_memory_mib,
        num_train_samples=len(task.train),
        sample_type=task.sample_type,
        num_classes=len(task.classes),
        strength=_strength(selected, plan),
        model_selection=selected.model_selection,
        probe_comparison=ProbeComparison.of(
            predictions.argmax(dim=1) == split.targets,
            probe_predictions.argmax(dim=1) == split.targets,
        )
        if isinstance(task_type, Multiclass)
        else None,
        taps=selected.taps,
        versions=versions(),
    )
    write_atomically(folder / "result.json", result.to_json())
    _clear(folder)
    return result


def _clear(folder: Path) -> None:
    """Delete what only unfinished runs need."""
    (folder / USAGE_FILE).unlink(missing_ok=True)
    for checkpoint in folder.glob(f"**/{PREVIOUS}"):
        checkpoint.unlink()
    for parts in ("folds", FINAL_FOLDER):
        for checkpoints in folder.glob(f"{parts}/**/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)


def _strength(selected: SelectionResult, plan: FineTunePlan) -> float | None:
    """Return the strength of the penalty or the probe; of several, the geometric mean."""
    if not plan.method.trains_network:
        return selected.setup.probe.regularization
    found = selected.model_selection
    if found is None or len(found.strengths) == 1:
        return plan.strength
    weights = found.mixing_coefficients[1:]
    if not sum(weights):
        return None  # the initialization alone: no strength is strong enough
    logs = [math.log(strength or LEAST_STRENGTH) for strength in found.strengths]
    mean = sum(weight * log for weight, log in zip(weights, logs, strict=True)) / sum(weights)
    return float(f"{math.exp(mean):.6g}")


def _test(plan: FineTunePlan, network: nn.Module) -> Tensor | None:
    """Return the final network's predictions for the test split, if there is one."""
    task, config = plan.setup.task, plan.config
    split = task.test
    if split is None:
        return None
    tested = CropAverage(network) if config.paper_protocol else network

    def predict(positions: Sequence[int]) -> tuple[Tensor]:
        loader = plan.loaders.test_dataloader(split.subset(positions))
        return (predict_dataloader(tested, loader, task.task_type),)

    return shard_and_gather(len(split), config.batch_size, predict)[0]


def _metric_fields(
    task: TaskData, prefix: MetricPrefix, predictions: Tensor | None, split: Split | None
) -> dict[str, Any]:
    """Return the metrics of predictions, by the names of `RunResult`."""
    if predictions is None or split is None:
        return {}
    metrics: list[MetricName] = [task.task_type.metric.name]
    if prefix == "test" and isinstance(task.task_type, Multiclass):
        metrics.append("mean_class_accuracy")
    found = {f"{prefix}_{m}": task.task_type.score(predictions, split.targets, m) for m in metrics}
    return {name: None if math.isnan(score) else score for name, score in found.items()}

"""The report page of one run."""

from pathlib import Path

from delta_transfer.metrics.metrics import ACCURACY, METRICS
from delta_transfer.metrics.run_result import ModelSelection, RunResult
from delta_transfer.report.confusion import class_accuracies, confusion_plot
from delta_transfer.report.curves import LOSSES, lines_plot, score_plot, series
from delta_transfer.report.figures import Plot
from delta_transfer.report.retention import run_retention
from delta_transfer.report.run_files import (
    count_predictions,
    read_config,
    read_drift,
    read_examples,
    read_metrics,
    read_molecules,
    read_predictions,
    read_result,
)
from delta_transfer.report.targets import target_table
from delta_transfer.report.templates import REPORT_FILE, Table, data_name, render_page
from delta_transfer.report.trade_off import trade_off
from delta_transfer.utils.files import write_atomically

Metrics = dict[int, dict[str, float]]

# Columns of metrics.csv that are not penalties, and their headings.
TOTAL = "train_loss"
COLUMNS = {
    **{f"val_{m.name}": f"Validation {m.display_name}" for m in METRICS.values()},
    "val_loss": "Validation loss",
    "train_loss": "Training loss, all terms",
    "train_task": "Task term",
    "lr": "Learning rate",
}


def write_run_report(folder: Path) -> Path:
    """Write `report.html` for one run, from its files alone.

    Learning curves, drift and examples are left out if their files are missing.

    Args:
        folder: of the run.

    Returns:
        The page.

    Raises:
        UserError: if the folder has no finished run, or one of its files is damaged.
    """
    result, config = read_result(folder), read_config(folder)
    selection, compared = result.model_selection, result.probe_comparison
    metrics, examples = read_metrics(folder), read_examples(folder) or ()
    tested = result.metric_value("test") is not None
    score = result.metric_value("test" if tested else "val")
    probe = result.metric_value("linear_probe_test" if tested else "linear_probe_val")
    # Binary and regression targets have a table of metrics instead of classes.
    predictions = read_predictions(folder) if result.metric is ACCURACY else None
    page = render_page(
        "run.html.j2",
        {
            "result": result,
            "data": data_name(config.get("data", "unknown data")),
            "model": config.get("model", "an unknown model"),
            "split": "test" if tested else "validation",
            "metric": result.metric,
            "score": score,
            "probe": probe,
            "difference": None if score is None or probe is None else score - probe,
            "compared": compared,
            "significant": compared is not None
            and (compared.difference_ci_low > 0 or compared.difference_ci_high < 0),
            "chosen": selection is not None and len(selection.losses) > 1,
            "curve_note": None if selection is None else _curve_note(selection),
            "plots": _plots(result, metrics, folder),
            "epochs": _epoch_table(metrics) if metrics else None,
            "num_samples": count_predictions(folder),
            "per_class": predictions and class_accuracies(predictions),
            "confusion": predictions
            and confusion_plot(predictions, sample_type=result.sample_type),
            "targets": target_table(folder) if predictions is None else None,
            "mistakes": [example for example in examples if not example.prediction.is_correct],
            "correct": [example for example in examples if example.prediction.is_correct],
            "molecules": read_molecules(folder),
            "retention": run_retention(folder, result),
            "trade_off": None if selection is None else trade_off({result.method: [selection]}),
            "shifted": data_name(config.get("shifted", "")),
            "config": {name: [value] for name, value in config.items()},
        },
    )
    path = folder / REPORT_FILE
    write_atomically(path, page)
    return path


def _curve_note(selection: ModelSelection) -> str:
    """Say of which trainings the curves are, if there are several."""
    parts = []
    if len(selection.strengths) > 1:
        parts.append(f"the training with strength {selection.strengths[0]:g}")
    if selection.folds:
        parts.append(f"means over {selection.folds} folds")
    return f"Curves show {', '.join(parts)}." if parts else ""


def _plots(result: RunResult, metrics: Metrics | None, folder: Path) -> list[Plot]:
    plots: list[Plot | None] = []
    if metrics:
        scores = series(metrics, f"val_{result.metric.name}")
        if scores:
            probe = result.metric_value("linear_probe_val")
            plots.append(score_plot(scores, result.metric, probe=probe))
        losses = {label: series(metrics, name) for name, label in LOSSES.items()}
        plots.append(
            lines_plot(losses, "loss", title="Task loss", caption="Without the penalties.")
        )
        terms = {name: series(metrics, f"train_{name}") for name in _penalties(metrics)}
        plots.append(
            lines_plot(
                terms,
                "penalties",
                title="Penalty terms",
                caption="As added to the task loss in training, including the strength.",
            )
        )
    drift = read_drift(folder)
    if drift:
        plots.append(
            lines_plot(
                drift,
                "drift",
                title="Distance from the pretrained network",
                caption="How far the features of each tap have moved from those of the pretrained "
                "network, in units of their variance; from the first tap (pale) to the last.",
                shades=True,
            )
        )
    return [plot for plot in plots if plot is not None]


def _penalties(metrics: Metrics) -> list[str]:
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    others = {TOTAL, *LOSSES}
    return [name[6:] for name in names if name.startswith("train_") and name not in others]


def _epoch_table(metrics: Metrics) -> Table:
    present = {name for values in metrics.values() for name in values}
    columns = {name: heading for name, heading in COLUMNS.items() if name in present}
    columns |= {f"train_{name}": f"Penalty {name}" for name in _penalties(metrics)}
    rows = [
        (str(epoch), [f"{values[name]:.4g}" if name in values else "" for name in columns])
        for epoch, values in metrics.items()
    ]
    return Table("Values per epoch", ["Epoch", *columns.values()], rows)

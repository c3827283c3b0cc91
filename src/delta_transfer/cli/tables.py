"""Terminal tables of methods, channel attention and trials."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from delta_transfer.experiments.search.search import Trial
    from delta_transfer.report.comparison.runs import MethodSummary
    from delta_transfer.runs.attention_report import TapSummary


def print_table(
    summaries: "Sequence[MethodSummary]", *, title: str, failed: Mapping[str, int]
) -> None:
    """Print one row per method.

    Args:
        summaries: results of the methods.
        title: title of the table.
        failed: method -> number of failed runs, if any.
    """
    from rich.console import Console

    view = _table(None, _COMPARISON_KEY)
    columns = ("method", "runs", "mean", "std", "vs l2", "95% interval", "seconds", "MiB")
    for column in columns:
        view.add_column(column, justify="left" if column == "method" else "right")
    for row in summaries:
        versus = row.vs_baseline
        several = versus is not None and versus.count > 1
        view.add_row(
            row.method,
            _runs(row.score.count, failed.get(row.method, 0)),
            row.metric.format_number(row.score.mean),
            row.metric.format_number(row.score.std) if row.score.count > 1 else "-",
            "" if versus is None else row.metric.format_signed(versus.mean),
            f"{row.metric.format_signed(versus.ci_low)} to "
            f"{row.metric.format_signed(versus.ci_high)}"
            if versus and several
            else "",
            f"{row.wall_time_s:.0f}",
            f"{row.peak_memory_mib:.0f}",
        )
    for method in failed.keys() - {row.method for row in summaries}:
        view.add_row(method, _runs(0, failed[method]))
    console = Console()
    console.print(title, highlight=False)  # a table would wrap a title wider than itself
    console.print(view, "")


_COMPARISON_KEY = (
    "vs l2: difference to plain fine-tuning, paired by seed, with its 95% interval. Seconds and "
    "peak MiB of memory are means per run."
)


def _runs(finished: int, failed: int) -> str:
    parts = [f"{finished}"] if finished else []
    return ", ".join([*parts, f"{failed} failed"] if failed else parts)


def print_attention(rows: "Sequence[TapSummary]", *, title: str) -> None:
    """Print one row per tap."""
    from rich.console import Console

    view = _table(title, _ATTENTION_KEY)
    view.add_column("tap", no_wrap=True)
    for column in ("channels", "effective", "entropy", "error", "least", "most", "top channels"):
        view.add_column(column, justify="right")
    for row in rows:
        view.add_row(
            row.tap,
            f"{row.channels}",
            f"{row.effective_channels:.1f}",
            f"{row.entropy:.3f}",
            "-" if row.uncertainty is None else f"{100 * row.uncertainty:.0f}%",
            f"{row.min_attention:.2f}",
            f"{row.max_attention:.2f}",
            " ".join(map(str, row.top)),
        )
    Console().print(view)


_ATTENTION_KEY = (
    "Uniform attention has entropy 1 and all its channels are effective; least and most are "
    "weights times channels, 1 where uniform. Error: standard error over the distance from uniform."
)


def print_trials(trials: "Sequence[Trial]", *, names: Sequence[str]) -> None:
    """Print one row per completed trial of a search.

    Args:
        trials: at least one trial.
        names: names of the searched options.
    """
    from rich.console import Console

    metric = trials[0].outcome.metric
    view = _table(None, _TRIALS_KEY)
    for column in ("trial", "loss", metric.display_name, "seconds"):
        view.add_column(column, justify="right")
    for name in names:
        view.add_column(name, justify="right", no_wrap=True)
    for trial in trials:
        outcome = trial.outcome
        options = (_option(name, trial.options[name]) for name in names)
        view.add_row(
            "default" if trial.number == 0 else f"{trial.number}",
            f"{outcome.loss:.4f}",
            metric.format_number(outcome.score),
            f"{outcome.wall_time_s:.0f}",
            *options,
        )
    Console().print(view, "")


def _option(name: str, value: Any) -> str:
    """Return a short form of an option of a trial."""
    if name == "taps" and value != "auto":
        return f"last {value.count(',') + 1}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_TRIALS_KEY = (
    "Loss: temperature-scaled validation loss, which ranks the trials; the metric is on the same "
    "data."
)


def _table(title: str | None, key: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        caption=key,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )

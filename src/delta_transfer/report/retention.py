"""What a run has kept: accuracy by corruption and severity, beside the linear probe's."""

import dataclasses
from pathlib import Path

from delta_transfer.metrics.run_result import RunResult
from delta_transfer.report.formatting import percent, points
from delta_transfer.report.run_files import read_corruptions
from delta_transfer.report.templates import Table


@dataclasses.dataclass(frozen=True)
class RunRetention:
    """Accuracy by corruption and severity, if measured, and on how many images without any."""

    table: Table | None
    num_images: int


def run_retention(folder: Path, result: RunResult) -> RunRetention | None:
    """Return what a run has kept; None if nothing was measured.

    Args:
        folder: of the run.
        result: of the run.
    """
    rows = read_corruptions(folder)
    if not rows and result.kept_agreement is None and result.shifted_accuracy is None:
        return None
    cells = [
        (
            format_corruption(row.corruption, row.severity),
            [
                percent(row.accuracy),
                percent(row.probe_accuracy),
                points(row.accuracy - row.probe_accuracy),
            ],
        )
        for row in rows
    ]
    headings = ["Corruption", "This run", "Linear probe", "Difference in points"]
    table = Table("Accuracy by corruption and severity", headings, cells) if cells else None
    return RunRetention(table, rows[0].num_images if rows else 0)


def format_corruption(corruption: str, severity: int) -> str:
    """Describe a corruption.

    Example:
        >>> format_corruption("gaussian_noise", 2), format_corruption("none", 0)
        ('Gaussian noise, severity 2', 'No corruption')
    """
    if corruption == "none":
        return "No corruption"
    name = corruption.replace("_", " ").replace("jpeg", "JPEG")
    return f"{name[0].upper()}{name[1:]}, severity {severity}"

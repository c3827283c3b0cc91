"""Read CSV files strictly: errors name the file and the line."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.errors import DataError
from delta_transfer.metrics.metrics import Metric


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table, by the names of its columns."""

    path: Path
    line: int
    cells: dict[str, str]

    def number(self, column: str) -> float:
        """Return the number in a column; NaN and infinity are allowed.

        Raises:
            DataError: if it is not a number.
        """
        text = self.cells[column]
        try:
            return float(text)
        except ValueError:
            raise self.error(f"{column} must be a number, got {text!r}") from None

    def integer(self, column: str) -> int:
        """Return the whole number in a column, at least zero.

        Raises:
            DataError: if it is not one.
        """
        text = self.cells[column]
        if text.isascii() and text.isdecimal():  # a float cannot represent a large seed
            return int(text)
        value = self.number(column)
        if not math.isfinite(value) or value != int(value) or value < 0:
            raise self.error(f"{column} must be a whole number, got {self.cells[column]!r}")
        return int(value)

    def fraction(self, column: str) -> float:
        """Return the number from 0 to 1 in a column.

        Raises:
            DataError: if it is not one.
        """
        value = self.number(column)
        if not 0 <= value <= 1:
            raise self.error(f"{column} must be between 0 and 1, got {self.cells[column]!r}")
        return value

    def metric_value(self, column: str, metric: Metric) -> float:
        """Return the value of a metric in a column.

        Raises:
            DataError: if it is not a valid one.
        """
        return self.fraction(column) if metric.percent else self.number(column)

    def error(self, message: str) -> DataError:
        """Return the error for something in this line."""
        return DataError(f"{self.path}, line {self.line}: {message}")


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Read the rows of a CSV file with a header.

    Args:
        path: the file.
        columns: the required columns; others are allowed.

    Raises:
        DataError: if the file is missing, damaged or lacks a column.
    """
    header, lines = read_lines(path)
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}: its first line is damaged")
    return [Row(path, line, dict(zip(header, cells, strict=True))) for line, cells in lines]


def read_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the header of a CSV file, and the number and cells of each line below it.

    Raises:
        DataError: if the file is missing, is not a CSV file or has lines of different lengths.
    """
    lines: list[tuple[int, list[str]]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            lines.extend((reader.line_num, cells) for cells in reader if cells)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: is the run finished?") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file: {error}") from error
    if not lines:
        raise DataError(f"{path} is empty: it must start with the names of its columns")
    header = lines[0][1]
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(header)} cells expected, got {len(cells)}; "
                "the file is damaged or truncated"
            )
    return header, lines[1:]

"""The rows of a CSV file of SMILES: molecules, their labels and their splits."""

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.data.molecules.smiles import SmilesError, read_molecule
from delta_transfer.data.sources.csv import check_split_column
from delta_transfer.data.sources.csv_rows import Row, read_csv, refuse_lines
from delta_transfer.data.splits import SPLIT_ALIASES
from delta_transfer.errors import DataError, first_few, unknown

logger = logging.getLogger(__name__)

LAYOUT = (
    "a CSV file with commas, in UTF-8, that begins with a header, with a column of SMILES and "
    "columns of labels"
)
"""The expected file of molecules, for messages."""

_LOG_ABOVE = 10_000  # molecules, which take some ten seconds to read

_MISSING = ("", "nan", "na", "n/a", "none", "null")


@dataclass(frozen=True, kw_only=True)
class MoleculeTable:
    """The molecules of a file, in its order.

    Attributes:
        names: of each, all different: its SMILES, followed by a space and the line if it is not
            the first such row.
        labels: of each, a value for each of `label_columns`; NaN if unknown.
        splits: of each, "train", "val" or "test"; None without a column of splits.
        label_columns: the names of the columns of labels.
        unused_columns: the names of the remaining columns.
        notes: sentences for the user on molecules that are left out.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[float, ...], ...]
    splits: tuple[str, ...] | None
    label_columns: tuple[str, ...]
    unused_columns: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """True if all known labels are 0 or 1."""
        return all(value in (0, 1) or math.isnan(value) for row in self.labels for value in row)


def read_molecules(
    file: Path,
    *,
    smiles_column: str,
    label_columns: Sequence[str] = (),
    ignored_columns: Sequence[str] = (),
    use_split_column: bool = False,
) -> MoleculeTable:
    """Read the molecules of a file; rows with an invalid SMILES are left out.

    Args:
        file: the CSV file; one that ends in .gz is unpacked.
        smiles_column: the column of SMILES; case is ignored in all names of columns.
        label_columns: the columns of labels; if empty, all others that have numbers only.
        ignored_columns: columns that are not labels.
        use_split_column: whether to read splits from a column `split`, if there is one.

    Raises:
        DataError: naming the lines, if the file is not as expected; or if it has no molecule.
    """
    smiles_column = smiles_column.strip().lower()
    ignored = [name.lower() for name in ignored_columns]
    table = read_csv(file, layout=LAYOUT)
    written = {name.strip().lower(): name.strip() for name in table.header}
    written.pop(smiles_column, None)
    split_column = ["split"] if use_split_column and "split" in written else []
    requested = [name.strip().lower() for name in label_columns]
    for name in requested:
        if name not in written or name in split_column:
            choices = [written[key] for key in written if key not in split_column]
            raise DataError(f"'{file}': {unknown('column of labels', name, choices)}")
    labels = requested or [name for name in written if name not in (*ignored, *split_column)]
    rows = table.select(required=(smiles_column, *split_column), optional=labels)
    numbers = {name: [_number(row.fields[name]) for row in rows] for name in labels}
    if not requested:
        labels = [name for name in labels if _is_numeric(numbers[name])]
    if not labels:
        raise DataError(
            f"'{file}': no column beside '{smiles_column}' has numbers, to be used as labels: add "
            "one, with 0 and 1, or with values to predict"
        )
    for name in labels:
        wrong = [
            (row.line, f"'{row.fields[name]}'")
            for row, number in zip(rows, numbers[name], strict=True)
            if number is None
        ]
        hint = "write a number, or nothing if it is unknown"
        refuse_lines(file, f"the {written[name]} is not a number", wrong, hint=hint)
    if split_column:  # else a column of this name is labels
        check_split_column(file, rows)
    kept, notes = _readable(file, rows, smiles_column)
    values = list(zip(*(numbers[name] for name in labels), strict=True))
    splits = [SPLIT_ALIASES[rows[i].fields["split"].lower()] for i in kept if split_column]
    used = (*labels, *split_column)
    return MoleculeTable(
        names=tuple(_unique([(rows[i].fields[smiles_column], rows[i].line) for i in kept])),
        labels=tuple(values[i] for i in kept),
        splits=tuple(splits) if split_column else None,
        label_columns=tuple(written[name] for name in labels),
        unused_columns=tuple(written[name] for name in written if name not in used),
        notes=tuple(notes),
    )


def _number(text: str) -> float | None:
    """Return a number, NaN for a missing one; None for anything else."""
    if text.lower() in _MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _is_numeric(numbers: Sequence[float | None]) -> bool:
    """Return whether there are numbers, and nothing else."""
    known = [number for number in numbers if number is None or not math.isnan(number)]
    return bool(known) and None not in known


def _readable(file: Path, rows: Sequence[Row], smiles_column: str) -> tuple[list[int], list[str]]:
    """Return the positions of the rows with a valid SMILES, and a note on the others."""
    if len(rows) > _LOG_ABOVE:
        logger.info("reading %s molecules", f"{len(rows):,}")
    kept, lost = [], []
    for position, row in enumerate(rows):
        smiles = row.fields[smiles_column]
        try:
            if len(smiles.split()) > 1:
                raise SmilesError(smiles, "there is a space in it")
            read_molecule(smiles)
        except SmilesError as error:
            lost.append(f"line {row.line} ('{error.smiles}': {error.reason})")
        else:
            kept.append(position)
    if not kept:
        raise DataError(
            f"'{file}': the column '{smiles_column}' has no valid SMILES: {first_few(lost)}; name "
            "the column of SMILES"
        )
    if not lost:
        return kept, []
    return kept, [f"{len(lost)} of {len(rows)} SMILES are invalid and left out: {first_few(lost)}"]


def _unique(written: Sequence[tuple[str, int]]) -> list[str]:
    """Return each SMILES, with the number of the line after it from its second row on."""
    seen: set[str] = set()
    names = []
    for smiles, line in written:
        names.append(f"{smiles} line {line}" if smiles in seen else smiles)
        seen.add(smiles)
    return names


def parse_column_names(text: str) -> tuple[str, ...]:
    """Split a list of names at its commas, but not within double quotes.

    Example:
        >>> parse_column_names('a, "b, c"')
        ('a', 'b, c')
    """
    (names,) = csv.reader([text], skipinitialspace=True)
    return tuple(name.strip() for name in names)

"""The rows of a CSV file of SMILES: molecules, what is known of them, and their splits."""

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.data.molecules.smiles import SmilesError, read_molecule
from delta_transfer.data.sources.csv_rows import Row, read_rows, refuse_lines
from delta_transfer.data.splits import SPLIT_ALIASES
from delta_transfer.errors import UserError, first_few, unknown

logger = logging.getLogger(__name__)

LAYOUT = (
    "a CSV file with commas, in UTF-8, that begins with a header, with a column of SMILES and "
    "columns of labels"
)
"""What a file of molecules must look like, in words."""

_MANY = 10_000  # molecules, which take some ten seconds to read

_MISSING = ("", "nan", "na", "n/a", "none", "null")


@dataclass(frozen=True, kw_only=True)
class MoleculeTable:
    """The molecules of a file, in its order.

    Attributes:
        names: of each, no two of them equal: its SMILES, and after a space the line that it stands
            in if there is another such.
        labels: of each, a value for each of `label_columns`; NaN where it is not known.
        splits: of each, "train", "val" or "test"; None without a column of splits.
        label_columns: the names of the columns of labels.
        unused_columns: the names of the columns that are neither.
        notes: what a user should know of those that are left out or there more than once.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[float, ...], ...]
    splits: tuple[str, ...] | None
    label_columns: tuple[str, ...]
    unused_columns: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """Whether all that is known is 0 or 1."""
        return all(value in (0, 1) or math.isnan(value) for row in self.labels for value in row)


def read_molecules(
    file: Path,
    *,
    smiles_column: str,
    label_columns: Sequence[str] = (),
    ignored_columns: Sequence[str] = (),
    use_split_column: bool = False,
) -> MoleculeTable:
    """Read the molecules of a file; those whose SMILES is of none are left out.

    Args:
        file: the CSV file; one that ends in .gz is unpacked.
        smiles_column: the column of the SMILES; capitals do not count in the names of columns.
        label_columns: the columns of the labels; all others in which there are only numbers if
            empty.
        ignored_columns: columns that are none of those.
        use_split_column: whether a column `split`, if there is one, is of splits.

    Raises:
        UserError: if the file is not as it must be, naming the lines; or it has no molecule.
    """
    smiles_column, ignored_columns = (
        smiles_column.strip().lower(),
        [name.lower() for name in ignored_columns],
    )
    _, others = read_rows(file, required=(smiles_column,), layout=LAYOUT)
    there = {name.strip().lower(): name.strip() for name in others}
    given = ["split"] if use_split_column and "split" in there else []
    asked = [name.strip().lower() for name in label_columns]
    for name in asked:
        if name not in there or name in given:
            choices = [there[key] for key in there if key not in given]
            raise UserError(f"'{file}': {unknown('column of labels', name, choices)}")
    candidates = asked or [name for name in there if name not in (*ignored_columns, *given)]
    rows, _ = read_rows(file, required=(smiles_column, *given), optional=candidates, layout=LAYOUT)
    numbers = {name: [_number(row.fields[name]) for row in rows] for name in candidates}
    if not asked:
        candidates = [name for name in candidates if _is_numeric(numbers[name])]
    if not candidates:
        raise UserError(
            f"'{file}': no column beside '{smiles_column}' has labels, which are numbers: add "
            "one, with 0 "
            "and 1 for no and yes, or a value to learn"
        )
    for name in candidates:
        strange = [
            (row.line, f"'{row.fields[name]}'")
            for row, number in zip(rows, numbers[name], strict=True)
            if number is None
        ]
        mend = "write a number, or nothing where it is not known"
        refuse_lines(file, f"the {there[name]} is no number", strange, hint=mend)
    strange = [
        (row.line, f"'{row.fields['split']}'")
        for row in rows
        if given and row.fields["split"].lower() not in SPLIT_ALIASES
    ]
    refuse_lines(
        file, "the split is unknown", strange, hint=f"write one of {', '.join(SPLIT_ALIASES)}"
    )
    kept, notes = _readable(file, rows, smiles_column)
    values = list(zip(*(numbers[name] for name in candidates), strict=True))
    return MoleculeTable(
        names=tuple(_unique([(rows[i].fields[smiles_column], rows[i].line) for i in kept])),
        labels=tuple(values[i] for i in kept),
        splits=tuple(SPLIT_ALIASES[rows[i].fields["split"].lower()] for i in kept)
        if given
        else None,
        label_columns=tuple(there[name] for name in candidates),
        unused_columns=tuple(there[name] for name in there if name not in (*candidates, *given)),
        notes=tuple(notes),
    )


def _number(text: str) -> float | None:
    """The number that a text says, NaN for one that is not known; None for anything else."""
    if text.lower() in _MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _is_numeric(numbers: Sequence[float | None]) -> bool:
    """Whether there are numbers, and nothing else."""
    known = [number for number in numbers if number is None or not math.isnan(number)]
    return bool(known) and None not in known


def _readable(file: Path, rows: Sequence[Row], smiles_column: str) -> tuple[list[int], list[str]]:
    """The positions of the rows whose SMILES are of molecules, and a note on the others."""
    if len(rows) > _MANY:
        logger.info("reading %s molecules", f"{len(rows):,}")
    kept, lost = [], []
    for position, row in enumerate(rows):
        try:
            if len(row.fields[smiles_column].split()) > 1:
                raise SmilesError(row.fields[smiles_column], "there is a space in it")
            read_molecule(row.fields[smiles_column])
        except SmilesError as error:
            lost.append(f"line {row.line} ('{error.smiles}': {error.reason})")
        else:
            kept.append(position)
    if not kept:
        raise UserError(
            f"'{file}': nothing in the column '{smiles_column}' is the SMILES of a molecule: "
            f"{first_few(lost)}; name the column of the SMILES"
        )
    if not lost:
        return kept, []
    return kept, [
        f"{len(lost)} of {len(rows)} SMILES are of no molecule and are left out: {first_few(lost)}"
    ]


def _unique(written: Sequence[tuple[str, int]]) -> list[str]:
    """Each SMILES, from its second row on with the number of the line behind it."""
    seen: set[str] = set()
    names = []
    for smiles, line in written:
        names.append(f"{smiles} line {line}" if smiles in seen else smiles)
        seen.add(smiles)
    return names


def parse_column_names(text: str) -> tuple[str, ...]:
    """The names in a list with commas; quotes go around one with a comma in it.

    Example:
        >>> parse_column_names('a, "b, c"')
        ('a', 'b, c')
    """
    (names,) = csv.reader([text], skipinitialspace=True)
    return tuple(name.strip() for name in names)

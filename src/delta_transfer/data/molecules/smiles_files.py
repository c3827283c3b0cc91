"""Files that list molecules as SMILES, without labels."""

from pathlib import Path

from delta_transfer.data.sources.csv_rows import read_rows
from delta_transfer.data.splits import SPLIT_ALIASES
from delta_transfer.errors import UserError

SMILES_SUFFIXES = (".smi", ".smiles", ".txt")
"""How files with a SMILES at the beginning of each line end."""


def list_smiles(file: Path, *, column: str | None = None) -> list[str]:
    """The SMILES in a file, in order, those that are of no molecule too.

    Args:
        file: a CSV file, or one with a SMILES at the beginning of each line.
        column: of a CSV file, where they stand; `smiles` if not given.

    Raises:
        UserError: if it cannot be read, or has no such column.
    """
    if _is_table(file):
        return [smiles for smiles, _ in _rows(file, column)]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{file}' cannot be read as text ({error}): give a file of SMILES, one at the "
            "beginning of each line, in UTF-8"
        ) from error
    return [line.split()[0] for line in lines if line.strip()]


def list_smiles_without_test(file: Path, *, column: str | None = None) -> tuple[list[str], int]:
    """The SMILES in a file but for those to be tested on, and how many these are.

    Args:
        file: as for `list_smiles`; of a CSV file, a column `split` may name those to be tested on.
        column: likewise.

    Raises:
        UserError: likewise.
    """
    if not _is_table(file):
        return list_smiles(file), 0
    rows = _rows(file, column)
    rest = [smiles for smiles, split in rows if SPLIT_ALIASES.get(split.lower()) != "test"]
    return rest, len(rows) - len(rest)


def _is_table(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _rows(file: Path, column: str | None) -> list[tuple[str, str]]:
    """The SMILES of each row of a CSV file, and its split, "" where none is told."""
    name = (column or "smiles").strip().lower()
    layout = f"a CSV file with commas, in UTF-8, with a header and a column '{name}'"
    rows, _ = read_rows(file, required=(name,), optional=("split",), layout=layout)
    return [(row.fields[name], row.fields.get("split", "")) for row in rows]

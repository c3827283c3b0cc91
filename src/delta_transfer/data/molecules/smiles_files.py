"""Files that list molecules as SMILES, without labels."""

from pathlib import Path

from delta_transfer.data.sources.csv_rows import read_rows
from delta_transfer.data.splits import SPLIT_ALIASES
from delta_transfer.errors import DataError

SMILES_SUFFIXES = (".smi", ".smiles", ".txt")
"""The suffixes of files with a SMILES at the beginning of each line."""


def list_smiles(file: Path, *, column: str | None = None) -> list[str]:
    """Return the SMILES in a file, in order, also invalid ones.

    Args:
        file: a CSV file, or one with a SMILES at the beginning of each line.
        column: of the SMILES in a CSV file; `smiles` by default.

    Raises:
        DataError: if the file cannot be read, or has no such column.
    """
    if _is_csv(file):
        return [smiles for smiles, _ in _rows(file, column)]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"'{file}' cannot be read as text ({error}): pass a file in UTF-8 with a SMILES at the "
            "beginning of each line"
        ) from error
    return [line.split()[0] for line in lines if line.strip()]


def list_smiles_without_test(file: Path, *, column: str | None = None) -> tuple[list[str], int]:
    """Return the SMILES in a file that are not in its test split, and the size of that.

    Args:
        file: as for `list_smiles`; a CSV file may have a column `split`.
        column: as for `list_smiles`.

    Raises:
        DataError: as `list_smiles` does.
    """
    if not _is_csv(file):
        return list_smiles(file), 0
    rows = _rows(file, column)
    rest = [smiles for smiles, split in rows if SPLIT_ALIASES.get(split.lower()) != "test"]
    return rest, len(rows) - len(rest)


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _rows(file: Path, column: str | None) -> list[tuple[str, str]]:
    """Return SMILES and split of each row of a CSV file; "" without a column of splits."""
    name = (column or "smiles").strip().lower()
    layout = f"a CSV file with commas, in UTF-8, with a header and a column '{name}'"
    rows, _ = read_rows(file, required=(name,), optional=("split",), layout=layout)
    return [(row.fields[name], row.fields.get("split", "")) for row in rows]

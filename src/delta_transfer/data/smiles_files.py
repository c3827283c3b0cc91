"""Files that list molecules as SMILES, without labels."""

from pathlib import Path

from delta_transfer.data.csv_rows import read_rows
from delta_transfer.errors import UserError

LINES = (".smi", ".smiles", ".txt")
"""How files with a SMILES at the beginning of each line end."""


def list_smiles(file: Path, *, column: str | None = None) -> list[str]:
    """The SMILES in a file, in order, those that are of no molecule too.

    Args:
        file: a CSV file, or one with a SMILES at the beginning of each line.
        column: of a CSV file, where they stand; `smiles` if not given.

    Raises:
        UserError: if it cannot be read, or has no such column.
    """
    if file.suffix.lower() == ".csv":
        name = (column or "smiles").strip().lower()
        layout = f"a CSV file with commas, in UTF-8, with a header and a column '{name}'"
        rows, _ = read_rows(file, required=(name,), layout=layout)
        return [row.fields[name] for row in rows]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{file}' cannot be read as text ({error}): give a file of SMILES, one at the "
            "beginning of each line, in UTF-8"
        ) from error
    return [line.split()[0] for line in lines if line.strip()]

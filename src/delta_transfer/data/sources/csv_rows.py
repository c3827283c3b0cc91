"""The rows of a CSV file with a header, each with its line number, and errors that name lines."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.errors import UserError, first_few

LAYOUT = (
    "a CSV file with commas, in UTF-8, that begins with the header path,label or path,label,split"
)
"""What a data file must look like, in words."""

_PATHS = "a CSV file with commas, in UTF-8, that begins with a header with the column path"

_MAX_UNPACKED_BYTES = 2**30  # bytes of a compressed file, unpacked

_DELIMITERS = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row by its columns, without the spaces around each field, and the line it starts on."""

    line: int
    fields: dict[str, str]


def read_rows(
    file: Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    layout: str | None = None,
) -> tuple[list[Row], tuple[str, ...]]:
    """Read the columns wanted; the names in the header may have capital letters.

    Empty rows at the start and the end of the file do not count.

    Args:
        file: the CSV file; one that ends in .gz is unpacked.
        required: the columns that there must be; no row may have one of them empty.
        optional: columns that are read if they are there.
        layout: what the file must look like, in words; that of a list of images if not given.

    Returns:
        The rows, of which there is at least one, and the names of the other columns.

    Raises:
        UserError: if it is no such file, or rows are not as they must be; naming their lines.
    """
    layout = layout or (LAYOUT if "label" in required else _PATHS)
    records = _records(file, layout)
    if not records:
        raise UserError(f"'{file}' is empty: give {layout}")
    (line, header), *body = records
    columns = _columns(file, header, layout, line=line, required=required, optional=optional)
    if not body:
        raise UserError(
            f"'{file}' has no rows below its header: add a row for each image or molecule"
        )
    _check_shape(file, body, len(header))
    rows = [
        Row(number, {name: fields[index].strip() for name, index in columns.items()})
        for number, fields in body
    ]
    for name in required:
        empty = [(row.line, "") for row in rows if not row.fields[name]]
        refuse_lines(file, f"the {name} is empty", empty, hint="fill it in, or remove the row")
    return rows, tuple(name for i, name in enumerate(header) if i not in columns.values())


def refuse_lines(file: Path, what: str, lines: Sequence[tuple[int, str]], *, hint: str) -> None:
    """Raise an error if there are lines at fault.

    Args:
        file: the CSV file.
        what: what is wrong with them.
        lines: the number of each, and what is there, "" to show nothing.
        hint: what to do about it.

    Raises:
        UserError: naming the first few lines and how many there are.
    """
    if lines:
        named = [f"line {line}" + (f" ({text})" if text else "") for line, text in lines]
        raise UserError(f"'{file}', {first_few(named)}: {what}; {hint}")


def _records(file: Path, layout: str) -> list[tuple[int, list[str]]]:
    """The fields of each record and the line it starts on, without empty ones at either end."""
    text = _text(file, layout)
    _check_delimiter(file, text, layout)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for fields in reader:
            records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"'{file}': the row that begins in line {line} cannot be read ({error}): put double "
            'quotes around a whole field, and write "" for one within'
        ) from error
    full = [index for index, (_, fields) in enumerate(records) if not _is_empty(fields)]
    return records[full[0] : full[-1] + 1] if full else []


def _text(file: Path, layout: str) -> str:
    try:
        content = _read_gzip(file) if file.suffix.lower() == ".gz" else file.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read '{file}' ({error.strerror}); make it readable, or give {layout}"
        ) from error
    try:
        text = content.decode("utf-8-sig")
        at = text.find("\0")  # UTF-16 without a mark at its start decodes, with zeros in between
        bad = -1 if at < 0 else text[:at].count("\n")
    except UnicodeDecodeError as error:
        text, bad = "", content[: error.start].count(b"\n")
    if bad >= 0:
        raise UserError(
            f"'{file}' is not UTF-8 text (line {bad + 1}): save it as UTF-8, which spreadsheets "
            "call 'CSV UTF-8'"
        )
    return text


def _read_gzip(file: Path) -> bytes:
    try:
        with gzip.open(file) as stream:
            content = stream.read(_MAX_UNPACKED_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"'{file}' is damaged ({error}): get it again, or give it unpacked"
        ) from error
    if len(content) > _MAX_UNPACKED_BYTES:
        raise UserError(f"'{file}' holds more than a GiB: give it unpacked, if it is what you mean")
    return content


def _check_delimiter(file: Path, text: str, layout: str) -> None:
    header = next(iter(text.lstrip("\r\n").splitlines()), "")
    for delimiter, name in _DELIMITERS.items():
        if delimiter in header and "," not in header:
            raise UserError(
                f"'{file}': its columns are parted by {name}, and must be by commas: save it as "
                f"{layout}"
            )


def _columns(
    file: Path,
    header: Sequence[str],
    layout: str,
    *,
    line: int,
    required: Sequence[str],
    optional: Sequence[str],
) -> dict[str, int]:
    """Where the columns wanted are."""
    names = [name.strip().lower() for name in header]
    twice = [name for name in (*required, *optional) if names.count(name) > 1]
    if twice:
        raise UserError(
            f"'{file}': the header in line {line} has the column '{twice[0]}' twice: keep one"
        )
    missing = [name for name in required if name not in names]
    if missing:
        lacks, has = ([f"'{name.strip()}'" for name in part] for part in (missing, header))
        raise UserError(
            f"'{file}': the header in line {line} lacks the column {', '.join(lacks)} (it has "
            f"{first_few(has)}): give {layout}"
        )
    return {name: names.index(name) for name in (*required, *optional) if name in names}


def _check_shape(file: Path, body: Sequence[tuple[int, list[str]]], width: int) -> None:
    """Every row has as many fields as the header, and something in them."""
    empty = [(line, "") for line, fields in body if _is_empty(fields)]
    refuse_lines(file, "there is an empty row", empty, hint="remove it")
    odd = [
        (line, f"{len(fields)} fields, the header has {width}")
        for line, fields in body
        if len(fields) != width
    ]
    refuse_lines(
        file,
        "the number of fields is wrong",
        odd,
        hint="put double quotes around a field with a comma in it",
    )


def _is_empty(fields: Sequence[str]) -> bool:
    return not any(field.strip() for field in fields)

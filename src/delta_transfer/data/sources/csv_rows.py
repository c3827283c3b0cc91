"""The rows of a CSV file with a header, with line numbers, and errors that name lines."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.errors import DataError, first_few

LAYOUT = (
    "a CSV file with commas, in UTF-8, that begins with the header path,label or path,label,split"
)
"""The expected data file, for messages."""

_PATHS_LAYOUT = "a CSV file with commas, in UTF-8, that begins with a header with the column path"
_MAX_UNPACKED_BYTES = 2**30
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row by its columns, each field stripped of spaces, and the line it starts on."""

    line: int
    fields: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class CsvTable:
    """A parsed CSV file, whose columns can be chosen by its header.

    Attributes:
        file: the file, for messages.
        layout: the expected file, for messages.
        line: where the header begins.
        header: the names of the columns, as written.
        body: the line and the fields of each other row.
    """

    file: Path
    layout: str
    line: int
    header: Sequence[str]
    body: Sequence[tuple[int, Sequence[str]]]

    def select(self, *, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
        """Return the rows, at least one; arguments and errors as for `read_rows`."""
        file, columns = self.file, _columns(self, required=required, optional=optional)
        if not self.body:
            raise DataError(f"'{file}' has no rows below its header: add one per image or molecule")
        blank = [(line, "") for line, fields in self.body if _is_blank(fields)]
        refuse_lines(file, "the row is empty", blank, hint="remove it")
        width = len(self.header)
        odd = [
            (line, f"{len(fields)} fields, the header has {width}")
            for line, fields in self.body
            if len(fields) != width
        ]
        hint = "put double quotes around a field with a comma in it"
        refuse_lines(file, "the number of fields is wrong", odd, hint=hint)
        rows = [
            Row(line, {name: fields[index].strip() for name, index in columns.items()})
            for line, fields in self.body
        ]
        for name in required:
            empty = [(row.line, "") for row in rows if not row.fields[name]]
            refuse_lines(file, f"the {name} is empty", empty, hint="fill it in, or remove the row")
        return rows


def read_csv(file: Path, *, layout: str) -> CsvTable:
    """Parse a CSV file with a header; empty rows at its start and end are skipped.

    Args:
        file: the CSV file; one that ends in .gz is unpacked.
        layout: the expected file, for messages.

    Raises:
        DataError: if it is not such a file.
    """
    records = _records(file, layout)
    if not records:
        raise DataError(f"'{file}' is empty: pass {layout}")
    (line, header), *body = records
    return CsvTable(file=file, layout=layout, line=line, header=header, body=body)


def read_rows(
    file: Path, *, required: Sequence[str], optional: Sequence[str] = (), layout: str | None = None
) -> tuple[list[Row], tuple[str, ...]]:
    """Read columns of a CSV file, whose header may be in upper case.

    Args:
        file: as for `read_csv`.
        required: the columns that must exist, and may not have an empty field.
        optional: the columns to read if they exist.
        layout: the expected file, for messages; that of a list of images by default.

    Returns:
        The rows, at least one, and the names of the other columns.

    Raises:
        DataError: if it is not such a file, or naming the lines of wrong rows.
    """
    layout = layout or (LAYOUT if "label" in required else _PATHS_LAYOUT)
    table = read_csv(file, layout=layout)
    rows = table.select(required=required, optional=optional)
    used = (*required, *optional)
    return rows, tuple(name for name in table.header if name.strip().lower() not in used)


def refuse_lines(file: Path, problem: str, lines: Sequence[tuple[int, str]], *, hint: str) -> None:
    """Raise an error if there are wrong lines.

    Args:
        file: the CSV file.
        problem: of these lines, for the message.
        lines: the number of each, and its content, "" to show nothing.
        hint: the fix, for the message.

    Raises:
        DataError: naming the first few lines and the number of the others.
    """
    if lines:
        named = [f"line {line}" + (f" ({text})" if text else "") for line, text in lines]
        raise DataError(f"'{file}', {first_few(named)}: {problem}; {hint}")


def _records(file: Path, layout: str) -> list[tuple[int, list[str]]]:
    """Return the first line and the fields of each record, without blank ones at either end."""
    text = _text(file, layout)
    header = next(iter(text.lstrip("\r\n").splitlines()), "")
    for delimiter, name in _OTHER_DELIMITERS.items():
        if delimiter in header and "," not in header:
            raise DataError(f"'{file}' separates its columns by {name}: save it as {layout}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for fields in reader:
            records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"'{file}': the row that begins in line {line} cannot be read ({error}): put double "
            'quotes around a whole field, and write "" for one within'
        ) from error
    full = [index for index, (_, fields) in enumerate(records) if not _is_blank(fields)]
    return records[full[0] : full[-1] + 1] if full else []


def _text(file: Path, layout: str) -> str:
    try:
        content = _read_gzip(file) if file.suffix.lower() == ".gz" else file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read '{file}' ({error.strerror}); make it readable, or pass {layout}"
        ) from error
    try:
        text = content.decode("utf-8-sig")
        at = text.find("\0")  # UTF-16 without a mark at its start decodes, with zeros in between
        bad = -1 if at < 0 else text[:at].count("\n")
    except UnicodeDecodeError as error:
        text, bad = "", content[: error.start].count(b"\n")
    if bad >= 0:
        raise DataError(
            f"'{file}' is not UTF-8 text (line {bad + 1}): save it as UTF-8, which spreadsheets "
            "call 'CSV UTF-8'"
        )
    return text


def _read_gzip(file: Path) -> bytes:
    try:
        with gzip.open(file) as stream:
            content = stream.read(_MAX_UNPACKED_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"'{file}' is damaged ({error}): download it again, or unpack it yourself"
        ) from error
    if len(content) > _MAX_UNPACKED_BYTES:
        raise DataError(f"'{file}' unpacks to more than a GiB: if it is correct, unpack it")
    return content


def _columns(
    table: CsvTable, *, required: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    """Return the positions of the requested columns."""
    where = f"'{table.file}': the header in line {table.line}"
    names = [name.strip().lower() for name in table.header]
    missing = [name for name in required if name not in names]
    if missing:
        lacks, has = ([f"'{name.strip()}'" for name in part] for part in (missing, table.header))
        raise DataError(
            f"{where} lacks the column {', '.join(lacks)} (it has {first_few(has)}): pass "
            f"{table.layout}"
        )
    twice = [name for name in (*required, *optional) if names.count(name) > 1]
    if twice:
        raise DataError(f"{where} has the column '{twice[0]}' twice: keep one")
    return {name: names.index(name) for name in (*required, *optional) if name in names}


def _is_blank(fields: Sequence[str]) -> bool:
    return not any(field.strip() for field in fields)

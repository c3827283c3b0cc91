"""Render Jinja templates to self-contained HTML with escaped values."""

import dataclasses
import functools
from pathlib import PurePosixPath, PureWindowsPath

from jinja2 import Environment, PackageLoader, StrictUndefined

from delta_transfer.report import formatting

REPORT_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page: title, headings, and the name and formatted values of each row."""

    title: str
    headings: list[str]
    rows: list[tuple[str, list[str]]]


def render_page(template: str, values: dict[str, object], *, folder: str = "report") -> str:
    """Render a page, or a part of one, from its template.

    Args:
        template: the name of the file.
        values: its variables, by name.
        folder: of the package that contains the file.
    """
    return _environment(folder).get_template(template).render(values)


@functools.cache
def _environment(folder: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("delta_transfer", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "pluralize": formatting.pluralize,
        "duration": formatting.duration,
        "interval": formatting.interval,
        "label": formatting.method_label,
        "mebibytes": formatting.mebibytes,
        "percent": formatting.percent,
        "points": formatting.points,
        "training": formatting.format_training_size,
        "weights": formatting.describe_weights,
    }
    return environment


def data_name(data: str) -> str:
    """Return the display name of data: a named data set as it is, the last part of a path.

    Example:
        >>> data_name("skimage/patches"), data_name("/data/pets/"), data_name("./a/birds.csv")
        ('skimage/patches', 'pets', 'birds.csv')
    """
    windows = PureWindowsPath(data)
    if windows.drive or "\\" in data:
        return windows.name or data
    is_path = data.startswith(("/", ".", "~"))
    return (PurePosixPath(data).name or data) if is_path else data

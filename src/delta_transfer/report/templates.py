"""Templates filled in: one HTML file that loads nothing, its values escaped."""

import dataclasses
import functools
from pathlib import PurePosixPath, PureWindowsPath

from jinja2 import Environment, PackageLoader, StrictUndefined

from delta_transfer.report import formatting

REPORT_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers behind a figure: a title, headings, and each row's name and values as words."""

    title: str
    headings: list[str]
    rows: list[tuple[str, list[str]]]


def render_page(template: str, values: dict[str, object], *, folder: str = "report") -> str:
    """A page, or a part of one, from its template.

    Args:
        template: the name of the file.
        values: what it needs, by name.
        folder: of the package, in which the file is.
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
    }
    return environment


def data_name(data: str) -> str:
    """What data is called in a heading: a named set as it is, of a path the last part.

    Example:
        >>> data_name("skimage/patches"), data_name("/data/pets/"), data_name("./a/birds.csv")
        ('skimage/patches', 'pets', 'birds.csv')
    """
    windows = PureWindowsPath(data)
    if windows.drive or "\\" in data:
        return windows.name or data
    is_path = data.startswith(("/", ".", "~"))
    return (PurePosixPath(data).name or data) if is_path else data

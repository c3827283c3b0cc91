"""Draw figures with matplotlib, without global state, as SVG elements for a page."""

import dataclasses
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure

Draw = Callable[[Figure], None]

# Every colour is readable on white and on near-black; in a page CSS variables replace them.
INK, LINE, ACCENT = "#737a82", "#8f969d", "#178a93"
STRONG = "#656c74"  # ink on a coloured ground
SERIES = (ACCENT, "#c07d28", "#8566b8", "#bf5873", "#5580c6", "#7a8a3f")
_VARIABLES = {INK: "--ink-2", STRONG: "--ink", LINE: "--line-2"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}

WIDTH, HEIGHT, LEGEND_LINE = 360, 240, 16  # of a plot, in CSS pixels
FONT, SMALL = 11.0, 10.5

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib; a page substitutes its own font
    "font.size": FONT,
    "grid.alpha": 0.3,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.borderaxespad": 0.0,
    "legend.columnspacing": 1.4,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.7,
    "lines.markersize": 3.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x$
    "xtick.color": INK,
    "xtick.labelsize": SMALL,
    "xtick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of a page.

    Args:
        title: its heading.
        svg: the drawing, with its text alternative.
        caption: how to read it.
        wide: scroll instead of shrinking with the page.
    """

    title: str
    svg: Markup
    caption: str = ""
    wide: bool = False


def inline_svg(draw: Draw, name: str, *, size: tuple[float, float], text: str) -> Markup:
    """Return a drawing as an `<svg>` element for a page.

    It uses the page's colours and font. Its ids start with its name, so that they are unique.

    Args:
        draw: draws on an empty figure.
        name: of the figure, unique in the page.
        size: width and height in CSS pixels, at which letters have their normal size.
        text: the text alternative: what the figure shows, with its numbers.
    """
    content = render(draw, "svg", size=size, salt=name, fonttype="none")
    root = ET.fromstring(content)  # nosec B314  # drawn by matplotlib just now
    used = {match for value in _attributes(root) for match in re.findall(r"#([\w-]+)", value)}
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in ("style", "metadata", "title"):  # CSS would affect the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = _tag(element)
        element.attrib = {
            key.rpartition("}")[2]: _value(key, value, name, used)
            for key, value in element.attrib.items()
            if key != "id" or value in used
        }
    width, height = size
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:g}",
        "height": f"{height:g}",
        "role": "img",
        "aria-label": text,
    }
    text = ET.tostring(root, encoding="unicode").strip()
    return Markup(text)  # nosec B704  # ElementTree escapes what it writes


def render(
    draw: Draw,
    kind: str,
    *,
    size: tuple[float, float],
    salt: str = "delta-transfer",
    fonttype: str = "path",
    title: str | None = None,
    background: str | None = None,
    dpi: int = 200,
) -> bytes:
    """Return a drawing as the bytes of a file, reproducibly.

    Args:
        draw: draws on an empty figure.
        kind: `"png"` or `"svg"`.
        size: width and height in CSS pixels.
        salt: of the ids of an SVG.
        fonttype: `"path"` draws the letters of an SVG, `"none"` keeps them as text.
        title: of the file.
        background: colour of the background; transparent if None.
        dpi: dots of a PNG per 72 CSS pixels.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    metadata = {**nothing, "Title": title} if kind == "svg" else {"Software": None, "Title": title}
    with _style({"svg.hashsalt": salt, "svg.fonttype": fonttype}):
        # 72 matplotlib points are an inch; a point of an inline SVG is a CSS pixel of the page.
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure)
        figure.savefig(
            buffer,
            format=kind,
            dpi=dpi if kind == "png" else 72,
            transparent=background is None,
            facecolor=background or "none",
            metadata={key: value for key, value in metadata.items() if value or key != "Title"},
        )
    return buffer.getvalue()


def legend(figure: Figure, handles: list[Artist]) -> None:
    """Add a legend above the axes, in as many columns as fit."""
    if handles:
        columns = _legend_columns([str(handle.get_label()) for handle in handles])
        figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def height_with_legend(labels: list[str], *, height: float = HEIGHT) -> float:
    """Return the height of a figure that has a legend with these labels above its axes."""
    columns = _legend_columns(labels)
    return height + LEGEND_LINE * max(0, -(-len(labels) // columns) - 1)


def printable(text: str) -> str:
    """Replace the control characters that an SVG must not contain."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _legend_columns(labels: list[str]) -> int:
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), int(WIDTH / (5.6 * longest + 42))))


@contextmanager
def _style(more: dict[str, Any]) -> Iterator[None]:
    # From the defaults, so that the user's matplotlibrc has no effect.
    with matplotlib.style.context(["default", {**_STYLE, **more}]), warnings.catch_warnings():
        # A script that DejaVu lacks: the page's own font has it, a PNG shows a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _attributes(root: ET.Element) -> Iterator[str]:
    for element in root.iter():
        for key, value in element.attrib.items():
            if "url(#" in value or key.endswith("href"):
                yield value


def _value(key: str, value: str, name: str, used: set[str]) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", value)
    if key == "style":
        # Keep the font size, use the page's font.
        value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
        value = re.sub(r"font-family: [^;]*;? *", "", value)
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var({variable})")
    return value

"""Render the HTML of the web app: escaped, with embedded images."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from importlib.resources import files

from delta_transfer.app.drawing import as_image, as_uri, overlay, thumbnail
from delta_transfer.app.explainer import Explainer, Explanation
from delta_transfer.errors import as_flags
from delta_transfer.report import formatting, templates
from delta_transfer.report.templates import data_name

SHOWN = 5  # most classes
_NAME = 120  # most characters of a file's name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file that was rejected.

    Args:
        name: of the file.
        reason: why.
    """

    name: str
    reason: str


def render_page(
    explainer: Explainer, results: Sequence[Explanation | Refusal], *, limit: int, message: str = ""
) -> str:
    """Render the whole page.

    Args:
        explainer: the run.
        results: of the uploaded files.
        limit: most bytes of an upload.
        message: a message to show.
    """
    predictor, result = explainer.predictor, explainer.result
    return _render(
        "page.html.j2",
        {
            "method": formatting.method_label(result.method),
            "data": data_name(predictor.config.data),
            "seed": result.seed,
            "model": predictor.config.model,
            "classes": predictor.classes,
            "limit": limit,
            "message": message,
            "explanations": [render_explanation(explainer, one) for one in results],
        },
    )


def render_explanation(explainer: Explainer, result: Explanation | Refusal) -> str:
    """Render the result of one file."""
    name = formatting.shorten(result.name, _NAME)
    if isinstance(result, Refusal):
        return _render("refusal.html.j2", {"name": name, "reason": result.reason})
    image = as_image(result.pixels)
    class_map, neighbours, source = result.class_map, explainer.neighbours, explainer.source
    return _render(
        "explanation.html.j2",
        {
            "name": name,
            "size": result.pixels.shape[-1],
            "image": as_uri(image),
            "top_classes": list(itertools.islice(result.probabilities.items(), SHOWN)),
            "num_other_classes": max(0, len(result.probabilities) - SHOWN),
            "class_name": result.class_name,
            "class_map": None if class_map is None else as_uri(overlay(image, class_map.values)),
            "class_tap": "" if class_map is None else class_map.tap,
            "class_shape": () if class_map is None else tuple(class_map.values.shape),
            "neighbours": [
                (one, None if one.image is None else as_uri(thumbnail(one.image)))
                for one in result.neighbours
            ],
            "num_examples": 0 if isinstance(neighbours, str) else len(neighbours),
            "neighbours_error": as_flags(neighbours) if isinstance(neighbours, str) else "",
            "differences": [
                (one, None if one.values is None else as_uri(overlay(image, one.values)))
                for one in result.differences
            ],
            "unchanged": bool(result.differences)
            and not any(one.mean for one in result.differences),
            "normalized_by_this_image": not isinstance(source, str) and not source.variance,
            "source_error": as_flags(source) if isinstance(source, str) else "",
        },
    )


@functools.cache
def asset(name: str) -> str:
    """Return the page's style or script."""
    package = files("delta_transfer")
    if name == "style.css":
        shared = (package / "report" / name).read_text(encoding="utf-8")
        return shared + (package / "app" / name).read_text(encoding="utf-8")
    return (package / "app" / name).read_text(encoding="utf-8")


def _render(template: str, values: dict[str, object]) -> str:
    return templates.render_page(template, values, folder="app")

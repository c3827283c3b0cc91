"""The page's HTML: values escaped, images in it, nothing loaded from elsewhere."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from importlib.resources import files

from delta_transfer.app.drawing import as_image, as_uri, overlay, thumbnail
from delta_transfer.app.explainer import Explainer, Explanation
from delta_transfer.report import formatting, templates
from delta_transfer.report.templates import data_name

SHOWN = 5  # classes
_NAME = 120  # characters of a file's name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file that is not looked at.

    Args:
        name: of the file.
        reason: why.
    """

    name: str
    reason: str


def render_page(
    explainer: Explainer, results: Sequence[Explanation | Refusal], *, limit: int, message: str = ""
) -> str:
    """The whole page.

    Args:
        explainer: the run.
        results: what is said of the files that were uploaded.
        limit: bytes that may be uploaded at once.
        message: what else there is to say.
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
            "parts": [render_explanation(explainer, answer) for answer in results],
        },
    )


def render_explanation(explainer: Explainer, result: Explanation | Refusal) -> str:
    """What is said of one file."""
    name = formatting.shorten(result.name, _NAME)
    if isinstance(result, Refusal):
        return _render("refusal.html.j2", {"name": name, "reason": result.reason})
    image = as_image(result.pixels)
    found, near, source = result.class_map, explainer.neighbours, explainer.source
    return _render(
        "explanation.html.j2",
        {
            "name": name,
            "size": result.pixels.shape[-1],
            "image": as_uri(image),
            "top": list(itertools.islice(result.probabilities.items(), SHOWN)),
            "rest": max(0, len(result.probabilities) - SHOWN),
            "class_name": result.class_name,
            "class_map": None if found is None else as_uri(overlay(image, found.values)),
            "class_tap": "" if found is None else found.tap,
            "class_shape": () if found is None else tuple(found.values.shape),
            "neighbours": [
                (one, None if one.image is None else as_uri(thumbnail(one.image)))
                for one in result.neighbours
            ],
            "examples": 0 if isinstance(near, str) else len(near),
            "without_neighbours": near if isinstance(near, str) else "",
            "differences": [
                (one, None if one.values is None else as_uri(overlay(image, one.values)))
                for one in result.differences
            ],
            "same": bool(result.differences) and not any(one.mean for one in result.differences),
            "own_unit": not isinstance(source, str) and not source.variance,
            "without_source": source if isinstance(source, str) else "",
        },
    )


@functools.cache
def asset(name: str) -> str:
    """A file that the page asks for: its style or its script."""
    package = files("delta_transfer")
    if name == "style.css":
        shared = (package / "report" / name).read_text(encoding="utf-8")
        return shared + (package / "app" / name).read_text(encoding="utf-8")
    return (package / "app" / name).read_text(encoding="utf-8")


def _render(template: str, values: dict[str, object]) -> str:
    return templates.render_page(template, values, folder="app")

"""The page's HTML: values escaped, pictures in it, nothing loaded from elsewhere."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from importlib.resources import files

from delta_transfer.app.drawing import as_picture, as_uri, overlay, thumbnail
from delta_transfer.app.explainer import Explainer, Look
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
    explainer: Explainer, answers: Sequence[Look | Refusal], *, limit: int, message: str = ""
) -> str:
    """The whole page.

    Args:
        explainer: the run.
        answers: what is said of the files that were uploaded.
        limit: bytes that may be uploaded at once.
        message: what else there is to say.
    """
    predictor, result = explainer.predictor, explainer.result
    return _render(
        "page.html.j2",
        {
            "method": formatting.label(result.method),
            "data": data_name(predictor.config.data),
            "seed": result.seed,
            "model": predictor.config.model,
            "classes": predictor.classes,
            "limit": limit,
            "message": message,
            "parts": [render_answer(explainer, answer) for answer in answers],
        },
    )


def render_answer(explainer: Explainer, answer: Look | Refusal) -> str:
    """What is said of one file."""
    name = formatting.shorten(answer.name, _NAME)
    if isinstance(answer, Refusal):
        return _render("refusal.html.j2", {"name": name, "reason": answer.reason})
    picture = as_picture(answer.pixels)
    found, near, source = answer.class_map, explainer.neighbours, explainer.source
    return _render(
        "look.html.j2",
        {
            "name": name,
            "size": answer.pixels.shape[-1],
            "picture": as_uri(picture),
            "top": list(itertools.islice(answer.answers.items(), SHOWN)),
            "rest": max(0, len(answer.answers) - SHOWN),
            "class_name": answer.class_name,
            "class_map": None if found is None else as_uri(overlay(picture, found.values)),
            "class_tap": "" if found is None else found.tap,
            "class_shape": () if found is None else tuple(found.values.shape),
            "neighbours": [
                (one, None if one.picture is None else as_uri(thumbnail(one.picture)))
                for one in answer.neighbours
            ],
            "examples": 0 if isinstance(near, str) else len(near),
            "without_neighbours": near if isinstance(near, str) else "",
            "differences": [
                (one, None if one.values is None else as_uri(overlay(picture, one.values)))
                for one in answer.differences
            ],
            "same": bool(answer.differences) and not any(one.mean for one in answer.differences),
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

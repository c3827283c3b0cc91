"""Markdown: text that stays text, and tables."""

import re
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    r"""Text in which nothing is markup, in one line.

    Example:
        >>> plain("a|b <script> *c* stop_sign\n_d_")
        'a\\|b \\<script\\> \\*c\\* stop_sign \\_d\\_'
    """
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]<>|&#~])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def code(text: str) -> str:
    """Text as code, in one line, also in a table.

    Example:
        >>> code("blocks.1"), code("a|`b`")
        ('`blocks.1`', "`a/'b'`")
    """
    shown = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return f"`{shown or ' '}`"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    """A table.

    Args:
        headings: of the columns.
        rows: their cells, as Markdown.
        numbers: how many of the last columns are of numbers, set to the right.

    Example:
        >>> print(table(["class", "right"], [["cat", "83%"]], numbers=1))
        | class | right |
        |---|---:|
        | cat | 83% |
    """
    rules = ["---"] * (len(headings) - numbers) + ["---:"] * numbers
    lines = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]])

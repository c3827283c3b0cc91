"""The blocks of code on a page of the documentation, and of what kind each is."""

import csv
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Of fenced blocks the name behind the fence says of what kind they are.
FENCES = {
    "python": "python",
    "sh": "shell",
    "text": "output",
    "yaml": "options",
    "json": "json",
    "{eval-rst}": "directives",
}
PROGRAMS = (
    *("delta-transfer", "make", "pip", "python", "python3", "torchrun", "srun"),
    *("git", "cd", "export", ".", "ssh", "hf"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code.

    Args:
        page: the file.
        line: where it begins.
        kind: `"python"`, `"shell"`, `"output"` ...; `"unknown"` where nothing tells.
        text: what it says.
    """

    page: Path
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        """File and line, as a person looks for them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """All blocks of a page, fenced and indented ones, in their order."""
    return list(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            kind = FENCES.get(token.info.strip(), "unknown")
        elif token.type == "code_block":
            kind = kind_of(token.content)
        else:
            continue
        first, _ = token.map or (0, 0)
        yield Block(page=page, line=first + 1, kind=kind, text=token.content)


def kind_of(text: str) -> str:
    """What an indented block is, by its lines: all of them have to agree."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines[0].startswith("$ "):
        return "session"
    commands = [_program(words) in PROGRAMS for words in read_commands(text)]
    if commands and all(commands):
        return "shell"
    if any(commands) or any("delta-transfer" in line for line in lines):
        return "unknown"
    if lines[0].strip().endswith("/") and all(_FILE.match(line) for line in lines[1:]):
        return "files"
    if all(re.fullmatch(r"[a-z]+( \| [a-z]+)*", line) for line in lines):
        return "layers"
    rows = list(csv.reader(lines))
    columns = {len(row) for row in rows}
    if len(rows) > 1 and len(columns) == 1 and columns != {1} and " " not in lines[0]:
        return "table"
    return "formula" if re.search(r" = | <- |^loss |\|\|", text) else "unknown"


# A file or folder and what it is for, or the next line of that.
_FILE = re.compile(r"\s*[\w.]+(/|\.py|\.md)\s|\s{10,}\S")


def _program(words: list[str]) -> str:
    return next((word for word in words if "=" not in word), "")


def typed(session: str) -> str:
    """The commands of a session, which stand behind a dollar sign, without what was answered."""
    lines = session.splitlines()
    return "\n".join(line.removeprefix("$ ") for line in lines if line.startswith("$ "))


def read_commands(text: str) -> list[list[str]]:
    """The words of each command, without comments; a line that ends with a backslash goes on."""
    joined = re.sub(r"\\\n\s*", " ", text)
    try:
        found = [shlex.split(line, comments=True) for line in joined.splitlines()]
    except ValueError:  # a quotation mark of an apostrophe: no commands
        return []
    return [words for words in found if words]

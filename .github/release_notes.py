"""Print the section of CHANGELOG.md for a version: `release_notes.py v1.2.3 > notes.md`.

Fails if there is none, if unreleased changes are above it, or if CITATION.cff has another version.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(tag: str, changelog: str, citation: str) -> str:
    """Return the section of a version, without its heading.

    Raises:
        SystemExit: if the files are not ready for this tag.
    """
    version = tag.removeprefix("v")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    texts = {}
    for section in sections:
        heading, _, text = section.partition("\n")
        texts[heading.partition("]")[0].removeprefix("[")] = text.strip()
    if texts.get("Unreleased"):
        sys.exit(f"CHANGELOG.md: move what is below [Unreleased] to a section [{version}] - DATE")
    if not texts.get(version):
        sys.exit(f"CHANGELOG.md says nothing of {version}: its sections are {', '.join(texts)}")
    if not re.search(rf"^version: {re.escape(version)}$", citation, flags=re.MULTILINE):
        sys.exit(f"CITATION.cff: write 'version: {version}' there")
    return texts[version] + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    files = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    sys.stdout.write(release_notes(sys.argv[1], *files))

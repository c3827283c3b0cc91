"""Every method has a page that agrees with the table of methods and says when to use it."""

import re
from pathlib import Path

import pytest

from delta_transfer.methods.registry import METHODS
from tests.blocks import read_blocks

PAGES = Path(__file__).parents[1] / "docs" / "methods"
TABLE = (PAGES / "README.md").read_text()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_table_and_the_page_agree_with_the_method(method):
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| [`{method.name}`](")]
    _, _, _, head, strength, also, _ = (cell.strip() for cell in row.split("|"))
    page = (PAGES / row.partition("(")[2].partition(")")[0]).read_text()
    assert method.paper.removeprefix("https://") in page
    assert f"--method {method.name}" in page or method.name == "delta"
    heads = {
        "probe": "linear probe",
        "random": "random",
    }
    assert head == heads[method.head_init]
    strengths = [run.strength for run in method.candidates] or [method.default_strength]
    assert strength.endswith(
        " and ".join("none" if one is None else f"{one:g}" for one in strengths)
    )
    assert ("average" in also) == bool(method.candidates)
    sets_weight_decay = method.strength_option == "weight_decay"
    assert strength.startswith("weight decay") == sets_weight_decay
    assert ("weight decay" in also) == (method.weight_decay > 0 and not sets_weight_decay)


@pytest.mark.parametrize("page", sorted(PAGES.glob("[!R]*.md")), ids=lambda page: page.stem)
def test_a_page_has_a_formula_options_and_when_to_use_it(page):
    text = page.read_text()
    assert "formula" in [block.kind for block in read_blocks(page)]
    for heading in ("Options", "When to use"):
        assert re.search(rf"^(## |\*\*){heading}", text, re.MULTILINE), heading


def test_every_method_with_its_own_class_has_an_example():
    with_example = {
        page.stem
        for page in PAGES.glob("[!R]*.md")
        if "python" in [block.kind for block in read_blocks(page)]  # run by test_docs.py
    }
    own = {"bss", "co_tuning", "delta", "gtot", "ldifs", "lwf", "spd", "stochnorm"}
    assert with_example == own

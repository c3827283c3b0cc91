"""Every block of code in the documentation runs or is checked by its kind; links lead somewhere."""

import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from torch import nn

import delta_transfer
from delta_transfer.config.train import TrainOptions
from tests.blocks import PAGES, ROOT, Block, kind_of, read_blocks, read_commands, typed
from tests.commands_shown import check_command
from tests.page_setups import of_page

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
WITH_PYTHON = [
    str(page.relative_to(ROOT))
    for page in PAGES
    if any(block.page == page and block.kind == "python" for block in BLOCKS)
]
RUN_AS_A_WHOLE = [ROOT / "docs" / "tutorial.md"]  # by test_tutorial.py, which compares the output


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.kind == kind]


def test_of_every_block_the_kind_is_known():
    unknown = [block.place for block in BLOCKS if block.kind == "unknown"]
    assert not unknown, f"neither commands nor any other kind that a test knows: {unknown}"


def test_output_is_shown_only_where_it_is_compared():
    shown = {block.page for block in BLOCKS if block.kind == "output"}
    assert shown <= set(RUN_AS_A_WHOLE)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = of_page(page, monkeypatch)
    given = names.get("source")
    start = {} if given is None else _weights(given)
    blocks = [block for block in BLOCKS if block.page == ROOT / page and block.kind == "python"]
    for block in blocks:
        exec(compile(block.text, block.place, "exec"), names)

    for network in (thing for thing in names.values() if isinstance(thing, nn.Module)):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert all(parameter.isfinite().all() for parameter in network.parameters())
    if given is not None:
        assert all((tensor == start[name]).all() for name, tensor in _weights(given).items())
    if any("optimizer.step()" in block.text for block in blocks):
        source, target = _weights(names["source"]), _weights(names["target"])
        alike = [name for name in source if source[name].shape == target[name].shape]
        assert any((source[name] != target[name]).any() for name in alike)


def _weights(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("block", of_kind("session"))
def test_commands_of_a_session_are_understood(block, capsys):
    """What was answered is text that somebody has pasted."""
    commands = read_commands(typed(block.text))
    assert commands
    for words in commands:
        check_command(words)


@pytest.mark.parametrize("block", of_kind("shell"))
def test_commands_are_understood(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [other for other in BLOCKS if other.page == block.page and other.kind == "options"]
    for words in read_commands(block.text):
        for option, name in pairwise(words):
            if option == "-c":  # a file that the page has shown, or that a command leaves
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_text(files[0].text if files else "data: images\n")
        check_command(words)


def test_files_of_options_and_json_are_understood():
    for block in BLOCKS:
        if block.kind == "options":
            TrainOptions(**{"data": "images", **yaml.safe_load(block.text)}).resolve()
        if block.kind == "json":
            json.loads(block.text)


@pytest.mark.parametrize("block", of_kind("files"))
def test_files_that_are_listed_are_there(block):
    folder = ROOT
    for line in block.text.splitlines():
        found = re.match(r"( *)([\w./]+(?:/|\.py|\.md))(?: |$)", line)
        if found is None or len(found[1]) > 2:
            continue  # the text goes on
        path = (folder if found[1] else ROOT) / found[2]
        assert path.exists(), f"{block.place}: there is no {path}"
        if not found[1]:
            folder = path


@pytest.mark.parametrize("block", of_kind("layers"))
def test_the_layers_are_those_of_the_contract(block):
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (contract,) = tools["importlinter"]["contracts"]
    assert block.text.splitlines() == [re.sub(r"[()]", "", layer) for layer in contract["layers"]]


@pytest.mark.parametrize("block", of_kind("directives"))
def test_what_the_reference_documents_is_there(block):
    assert list(documented(block))


def documented(block: Block) -> Iterator[str]:
    """The names that a block has documented, each of which there is."""
    for kind, name in re.findall(r"^\.\. auto(\w+):: (\S+)", block.text, re.MULTILINE):
        if kind == "module":
            importlib.import_module(name)
        else:
            module, _, last = name.rpartition(".")
            assert hasattr(importlib.import_module(module), last), name
        yield name


def test_all_public_names_are_in_the_reference():
    found = {name for block in BLOCKS if block.kind == "directives" for name in documented(block)}
    assert {f"delta_transfer.{name}" for name in delta_transfer.__all__} <= found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in _links(page):
        if re.match("[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not heading or heading in _headings(file), target


def _links(page: Path) -> Iterator[str]:
    for token in MarkdownIt().parse(page.read_text()):
        for child in token.children or []:
            if child.type == "link_open":
                yield str(child.attrs["href"])


def _headings(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    tokens = MarkdownIt().parse(page.read_text())
    texts = [
        t.content
        for t, before in zip(tokens[1:], tokens, strict=False)
        if before.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def test_every_page_is_reached_from_another():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in _links(page)
        if not re.match("[a-z]+:", target)
    }
    own = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert not own - linked


def test_no_page_has_the_name_of_one_that_sphinx_makes():
    made = {ROOT / "docs" / f"{name}.md" for name in ("search", "genindex", "modindex")}
    assert not made & set(PAGES), "it would be overwritten in the site"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("delta-transfer train images\n", "shell"),
        ("CUDA_VISIBLE_DEVICES=0 delta-transfer train images\n", "shell"),
        ("delta-trasnfer train images\n", "unknown"),
        ("delta-transfer train images\nmodel  runs/mine\n", "unknown"),
        ("loss + strength ||w||^2\n", "formula"),
        ("smiles,permeable\nCCO,1\n", "table"),
        ("src/\n  cli.py   the program\n", "files"),
        ("done  test accuracy 90%\n", "unknown"),
        ("cli\napp | export\n", "layers"),
        ("$ delta-transfer methods\nprobe  only a head is fitted\n", "session"),
    ],
)
def test_the_kind_of_an_indented_block(text, kind):
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    "command",
    [
        "delta-transfer train images --epoch 3",
        "delta-transfer train images --epochs three",
        "delta-transfer train images --label-smoothing 2",
        "delta-transfer compare images --methods l2,l3",
        "delta-transfer compare images --ema 2",
        "delta-transfer train images --model resnet51",
        "delta-transfer train images --model resnet50.no_such_weights",
        "delta-transfer train no/such",
        "delta-transfer bench no_such_recipe",
        "delta-transfer no_such_command",
        "pip install delta-transfer[none]",
        "make nothing",
        "python benchmarks/step.py --no-such-option",
        "torchrun --nnodes 2 -m delta_transfer train images --epoch 3",
    ],
)
def test_a_command_that_does_not_work_is_noticed(command):
    with pytest.raises((ValueError, KeyError, AssertionError)):
        check_command(command.split())

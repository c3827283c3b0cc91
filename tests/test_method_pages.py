"""Every method has a page, and the examples on the pages run as they stand."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from delta_transfer.methods import METHODS
from tests.rows import graph_net, some_rows

PAGES = Path(__file__).parents[1] / "docs" / "methods"
TABLE = (PAGES / "README.md").read_text()
EXAMPLES = {
    path.stem: found[0]
    for path in sorted(PAGES.glob("*.md"))
    if path.stem not in ("README", "delta", "gtot")
    and (found := re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_table_and_the_page_are_those_of_the_method(method):
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| [`{method.name}`](")]
    _, _, _, head, strength, also, _ = (cell.strip() for cell in row.split("|"))
    page = (PAGES / row.partition("(")[2].partition(")")[0]).read_text()
    assert method.paper.removeprefix("https://") in page
    assert f"--method {method.name}" in page or method.name == "delta"
    heads = {"probe": "probe", "raw_probe": "raw probe", "random": "at random"}
    assert head.removeprefix("as the ") == heads[method.head]
    strengths = [one.strength for one in method.branches or (method,) if one.strength is not None]
    assert strength.endswith(" and ".join(f"{one:g}" for one in strengths) or "none")
    assert ("average" in also) == bool(method.branches)
    assert strength.startswith("weight decay") == method.decay
    assert ("weight decay" in also) == (method.weight_decay > 0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_and_trains(name):
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", num_classes=8)
    target = timm.create_model("test_resnet", num_classes=37)
    body = {n: t for n, t in source.state_dict().items() if not n.startswith("fc.")}
    target.load_state_dict(body, strict=False)
    start = {n: t.clone() for n, t in source.state_dict().items()}
    data = TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8) // 2)
    names = {
        "source": source,
        "target": target,
        "plain_loader": DataLoader(data, batch_size=4),
        "train_loader": DataLoader(data, batch_size=4),
    }

    exec(EXAMPLES[name], names)

    assert not torch.equal(target.conv1[0].weight, source.conv1[0].weight)
    assert all(torch.equal(tensor, start[n]) for n, tensor in source.state_dict().items())
    for network in (source, target):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert all(p.isfinite().all() for p in network.parameters())


def test_the_example_of_gtot_trains_a_network_of_graphs():
    source, target = graph_net(), graph_net(outputs=4)
    body = {n: t for n, t in source.state_dict().items() if not n.startswith("head.")}
    target.load_state_dict(body, strict=False)
    loader = [(some_rows(seed=seed), torch.arange(4)) for seed in range(2)]
    page = (PAGES / "gtot.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {"source": source, "target": target, "train_loader": loader})
    assert not torch.equal(target.layers[0].linear.weight, source.layers[0].linear.weight)


def test_all_methods_with_a_class_of_their_own_have_an_example():
    assert set(EXAMPLES) == {"bss", "co_tuning", "ldifs", "lwf", "spd", "stochnorm"}

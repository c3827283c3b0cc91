"""The README's example is run as it stands, on a small network and a few pictures."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    calls = []

    def small(name: str, *, pretrained: bool, num_classes: int = 10) -> torch.nn.Module:
        calls.append((name, pretrained))
        torch.manual_seed(0)
        return create("resnet10t", pretrained=False, num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", small)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(8, 3, 64, 64, generator=generator)
    data = TensorDataset(pictures, torch.arange(8) % 37)
    names = {
        "plain_loader": DataLoader(data, batch_size=4),
        "train_loader": [(pictures, data.tensors[1])],
    }

    exec(example, names)

    assert calls == [("resnet50", True)] * 2
    source, target = names["source"], names["target"]
    moved = [
        not torch.equal(a, b)
        for a, b in zip(source.parameters(), target.parameters(), strict=True)
        if a.shape == b.shape
    ]
    assert any(moved)
    assert not any(module._forward_hooks for module in (*source.modules(), *target.modules()))
    assert names["loss"].item() > 0

"""A fit whose inputs are no tensors, and whose features are rows."""

import csv
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from delta_transfer.data.samplers import EpochSampler
from delta_transfer.features.taps import Taps
from delta_transfer.methods import L2, Delta
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.callbacks import MeasureDrift
from delta_transfer.training.fit import fit
from delta_transfer.training.optimizers import OptimizerConfig, layer_lr_scales
from delta_transfer.training.trainer import FitConfig
from tests.networks import moved
from tests.rows import Rows, graph_net, some_rows

SIZES = (3, 1, 5, 2, 4, 6, 2)
TAPS = ("layers.1", "pool")


class Graphs(Dataset[tuple[Rows, int]]):
    def __init__(self) -> None:
        self.all = some_rows(SIZES)

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        return self.all[index : index + 1], index % 3


def collate(samples):
    graphs, labels = zip(*samples, strict=True)
    return Rows.cat(list(graphs)), torch.tensor(labels)


def trained(folder, *, parts: int = 1):
    """The network after a fit of two epochs, and the drift of each."""
    source, target, data = graph_net(), graph_net(), Graphs()
    inputs = collate([data[i] for i in range(4)])[0]
    sampler = EpochSampler(len(data), seed=0)
    regularizer = Regularizer(
        target, source, [Delta(taps=TAPS, strength=1.0), L2("head", strength=0.01)]
    )
    regularizer.calibrate([inputs])
    drift = MeasureDrift(target, source, taps=TAPS, inputs=inputs, path=folder / "drift.csv")
    fit(
        target,
        regularizer,
        FitConfig(
            train_dataloader=DataLoader(data, batch_size=3, sampler=sampler, collate_fn=collate),
            val_dataloader=DataLoader(data, batch_size=5, collate_fn=collate),
            epochs=2,
            folder=folder,
            gradient_accumulation_steps=parts,
            accelerator="cpu",
        ),
        loss=F.cross_entropy,
        head="head",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(
            optimizer="sgd",
            lr=0.01,
            head_lr=0.01,
            weight_decay=0.0,
            schedule="constant",
            warmup_ratio=0.15,
        ),
        callbacks=[drift],
    )
    with (folder / "drift.csv").open() as file:
        return target, [float(row["distance"]) for row in csv.DictReader(file)]


def test_a_fit_is_what_a_plain_loop_makes_of_the_same_graphs(tmp_path):
    found, drift = trained(tmp_path)
    source, target, data = graph_net(), graph_net(), Graphs()
    regularizer = Regularizer(
        target, source, [Delta(taps=TAPS, strength=1.0), L2("head", strength=0.01)]
    )
    regularizer.calibrate([collate([data[i] for i in range(4)])[0]])
    optimizer = torch.optim.SGD(target.parameters(), lr=0.01, momentum=0.9)
    sampler = EpochSampler(len(data), seed=0)
    target.train()
    with regularizer:
        for epoch in range(2):
            sampler.set_epoch(epoch)
            order = [index for _, index in sampler]
            for start in range(0, len(order), 3):
                inputs, labels = collate([data[i] for i in order[start : start + 3]])
                loss = F.cross_entropy(target(inputs), labels) + regularizer(inputs).total
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(target.parameters(), 1.0)
                optimizer.step()
    for name, tensor in target.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, atol=1e-6), name
    assert drift[:2] == [0, 0]
    assert min(drift[2:]) > 0


def test_a_step_in_parts_is_the_same_step(tmp_path):
    (whole, _), (parts, _) = (trained(tmp_path / str(p), parts=p) for p in (1, 3))
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(parts.state_dict()[name], tensor, atol=1e-6), name


def test_drift_is_the_mean_over_each_graphs_rows(tmp_path):
    source, inputs = graph_net(), some_rows()
    target = moved(source)
    drift = MeasureDrift(target, source, taps=TAPS, inputs=inputs, path=tmp_path / "drift.csv")
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), current_epoch=0)
    drift.on_validation_end(trainer, None)
    with (tmp_path / "drift.csv").open() as file:
        found = {row["tap"]: float(row["distance"]) for row in csv.DictReader(file)}
    for tap in TAPS:
        rows = []
        for network in (target, source):
            with Taps(network, [tap]) as taps, torch.no_grad():
                network(inputs)
            rows.append(taps.outputs()[tap])
        squares, variance = (
            (rows[0] - rows[1]).square().mean(dim=1),
            rows[1].var(dim=0, correction=0),
        )
        if tap == "layers.1":
            graphs = [squares[inputs.groups == i].mean() for i in range(len(inputs))]
            squares = torch.stack(graphs)
        assert found[tap] == pytest.approx(
            (0.5 * squares.mean() / variance.mean()).item(), rel=1e-4
        )


def test_layers_below_the_head_learn_slower():
    scales = layer_lr_scales(graph_net(), head="head", factor=0.5, example=some_rows())
    assert [scales[f"layers.{i}.linear.weight"] for i in range(3)] == [0.125, 0.25, 0.5]

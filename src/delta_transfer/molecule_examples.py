"""Molecules for the report: whose features fine-tuning has moved, and at which atoms."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transfer.data.graphs.loader import collate_graphs
from delta_transfer.data.molecules.drawing import draw_molecule
from delta_transfer.data.task import Split
from delta_transfer.features.taps import Taps
from delta_transfer.features.variance import FeatureVariance
from delta_transfer.outputs import to_csv
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.module_state import device_of, evaluating

LOOKED_AT = 512  # molecules at most
MOST, LEAST = 9, 3  # that are drawn


def write_molecules(
    folder: Path, split: Split, *, network: nn.Module, source: nn.Module, taps: Sequence[str]
) -> None:
    """Draws the molecules whose features moved most and least: `examples/`, `molecules.csv`.

    The darker an atom, the further its features moved, on one scale for all.

    Args:
        folder: of the run.
        split: the molecules, of which some are looked at if there are many.
        network: fine-tuned.
        source: what it started from.
        taps: of which the last one with a row for each atom is looked at.
    """
    count = min(LOOKED_AT, len(split))
    some = split.subset(i * len(split) // count for i in range(count))
    distances = atom_distances(some, network=network, source=source, taps=taps)
    if not distances:
        return
    means = torch.stack([distance.mean() for distance in distances])
    order = means.argsort(descending=True, stable=True).tolist()
    chosen = dict.fromkeys([*order[:MOST], *order[-LEAST:]])
    darkest = max(float(distances[i].max()) for i in chosen) or 1.0
    (folder / "examples").mkdir()
    rows = [["file", "path", "distance"]]
    for number, i in enumerate(chosen):
        file, name = f"{number:02d}.png", some.paths[i]
        shades = (distances[i] / darkest).tolist()
        draw_molecule(name, shades).save(folder / "examples" / file)
        rows.append([file, name, f"{means[i].item():.6g}"])
    write_atomically(folder / "molecules.csv", to_csv(rows))


def atom_distances(
    split: Split, *, network: nn.Module, source: nn.Module, taps: Sequence[str]
) -> list[Tensor]:
    """How far the features of each node of each graph moved: `[nodes]` for each, on the CPU.

    In the unit of DELTA without attention, `1/2 mean_c (F(w) - F(w0))^2 / v`, in eval mode, at the
    last tap that has a row for each node; nothing if none has.

    Args:
        split: graphs.
        network: fine-tuned.
        source: what it started from.
        taps: names of modules of both.
    """
    graphs, _ = collate_graphs([(split.read(path), 0) for path in split.paths])
    groups = graphs.groups
    found = []
    for model in (network, source):
        with Taps(model, taps) as recorded, evaluating(model), torch.no_grad():
            recorded.record(graphs.to(device_of(model)))
            found.append(recorded.features())
    tap = next((tap for tap in reversed(taps) if len(found[1][tap]) == len(groups)), None)
    if tap is None:
        return []
    variance = FeatureVariance()
    variance.update(found[1][tap])
    squares = (found[0][tap] - found[1][tap]).square().mean(dim=1)
    distances = (0.5 * squares / variance.compute()).cpu()
    return list(torch.split(distances, torch.bincount(groups).tolist()))

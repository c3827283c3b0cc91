"""Benchmarks of graphs on miniature copies of their data sets."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
pytest.importorskip("rdkit", reason="RDKit is not installed")

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.data.molecules.nci import load_nci_smiles
from delta_transfer.metrics.run_result import RunResult
from tests.data.graphs.test_tudataset import write as write_tu
from tests.experiments.benchmark.test_benchmark import bench, cells, shrunk


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread is enough for miniatures."""
    monkeypatch.setattr("delta_transfer.experiments.scheduling.placement.cpu_count", lambda: 1)


def molecules(root: Path) -> None:
    """BBBP and SIDER as they are published, of some molecules that RDKit brings."""
    (root / "sider" / "raw").mkdir(parents=True)
    smiles = load_nci_smiles()[:60]
    with (root / "BBBP.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["num", "name", "p_np", "smiles"])
        writer.writerows([i, f"m{i}", int("N" in one), one] for i, one in enumerate(smiles))
    with gzip.open(root / "sider" / "raw" / "sider.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", *(f"disorders {i}" for i in range(27))])
        writer.writerows(
            [one, *(len(one) // 2 ** (i % 5) % 2 for i in range(27))] for one in smiles
        )


def graph_weights(model: str, spec: GraphSpec, file: Path) -> Path:
    """Random weights of a network for graphs."""
    torch.manual_seed(0)
    network = load_graph_backbone(model, num_outputs=2, spec=spec, pretrained=False).module
    state = network.state_dict()
    save_file({name: one for name, one in state.items() if not name.startswith("head")}, file)
    return file


@pytest.mark.slow
def test_proteins_by_folds_and_again_with_another_method(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tu(tmp_path / "data" / "PROTEINS" / "raw", name="PROTEINS")
    file = shrunk("proteins", tmp_path, epochs=1)
    graph_weights(
        "pyg/GIN-5x64",
        GraphSpec(node_features="numbers", num_node_features=3),
        tmp_path / "data" / "proteins_gin.safetensors",
    )
    assert bench(file, tmp_path / "data", "--methods=l2", "--seeds=0,1") == 0
    first = capsys.readouterr().out
    runs = [RunResult.load(f"runs/bench-proteins/l2-seed{seed}") for seed in (0, 1)]
    scores = [100 * run.test_accuracy for run in runs]
    assert cells(first, "l2")[:3] == [
        f"{np.mean(scores):.2f}",
        "+-",
        f"{np.std(scores, ddof=1):.2f}",
    ]
    assert cells(first, "delta_attention") == ["-", "63.96", "+-", "5.35"]
    assert cells(first, "g-tuning") == ["-", "72.05"]
    assert bench(file, tmp_path / "data", "--methods=probe", "--seeds=0,1") == 0
    second = capsys.readouterr().out
    assert cells(second, "l2") == cells(first, "l2")  # it is there already, and stays
    assert cells(second, "probe")[3:] == ["-"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bbbp", "sider"])
def test_molecules_from_the_published_files_to_the_table(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    molecules(tmp_path / "data")
    file = shrunk(name, tmp_path, epochs=1)
    weights = graph_weights("pretrain-gnns/gin", GraphSpec(), tmp_path / "gin.safetensors")
    more = (f"--weights={weights}", "--methods=l2", "--seeds=0")
    assert bench(file, tmp_path / "data", *more) == 0
    (ours, published) = cells(capsys.readouterr().out, "l2")
    result = RunResult.load(f"runs/bench-{name}/l2-seed0")
    assert ours == f"{100 * result.test_roc_auc:.2f}"
    assert published == f"{yaml.safe_load(file.read_text())['published']['l2']['value']:.2f}"

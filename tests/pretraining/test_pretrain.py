import csv
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import networkx
import pytest
import torch
from safetensors.torch import load_file

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.graph_network import GraphNetwork
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.cli import main
from delta_transfer.config.commands import PretrainOptions
from delta_transfer.errors import UserError

pytest.importorskip("torch_geometric")
pytest.importorskip("rdkit")

from torch_geometric.data import Data

from delta_transfer.data.graphs.batch import GraphBatch
from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.molecules.smiles import read_molecule
from delta_transfer.data.registry import load_data
from delta_transfer.pretraining.attribute_masking import AttributeMasking, draw_masked_nodes
from delta_transfer.pretraining.context_prediction import (
    ContextPrediction,
    count_hops,
    draw_centers,
)
from delta_transfer.pretraining.data import read_unlabelled
from delta_transfer.pretraining.pretrain import pretrain

# Chains in which a masked atom can be predicted from the others; each with all spellings of its
# bonds, so that held-out chains are like the others.
SMILES = [
    "".join(part for pair in zip(chain, (*bonds, ""), strict=True) for part in pair)
    for chain in ("COC", "CCF", "CCOC", "CCCF", "CCCOC")
    for bonds in itertools.product(("", "-"), repeat=len(chain) - 1)
]
RINGS = [f"C1{'C' * n}C1{end}" for n in range(1, 7) for end in ("", "F", "O", "CF")]


@pytest.fixture
def smiles(tmp_path) -> Path:
    path = tmp_path / "some.smi"
    path.write_text("".join(f"{text} name {i}\n" for i, text in enumerate(SMILES)))
    return path


def small(data: Path, out: Path, **options) -> PretrainOptions:
    """Return options for a pretraining of seconds."""
    defaults = {"model": "pyg/GIN-2x16", "epochs": 2, "batch_size": 8, "device": "cpu"}
    return PretrainOptions(data=str(data), out=str(out), **{**defaults, **options})


def graphs_of(sizes: Iterable[int]) -> GraphBatch:
    empty = torch.empty(2, 0, dtype=torch.long)
    return GraphBatch.from_data_list([Data(x=torch.ones(n, 1), edge_index=empty) for n in sizes])


class TestDrawMaskedNodes:
    @pytest.mark.parametrize("rate", [0.15, 0.5, 0.99])
    def test_each_graph_has_its_fraction(self, rate):
        sizes = [1, 2, 7, 20, 40]
        groups = graphs_of(sizes).groups
        hidden = draw_masked_nodes(groups, rate, torch.Generator())
        assert hidden.tolist() == sorted(set(hidden.tolist()))
        counts = torch.bincount(groups[hidden], minlength=5).tolist()
        assert counts == [int(size * rate + 1) for size in sizes]

    def test_all_nodes_are_masked_equally_often(self):
        groups = graphs_of([4, 6]).groups
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_masked_nodes(groups, 0.2, generator) for _ in range(3000)]
        often = torch.bincount(torch.cat(drawn), minlength=10) / 3000
        expected = torch.tensor([1 / 4] * 4 + [2 / 6] * 6)
        torch.testing.assert_close(often, expected, rtol=0, atol=0.03)


class TestMasking:
    def test_masked_features_do_not_reach_the_network(self):
        """The network's input does not depend on the masked atoms."""
        seen = []

        class Network:
            def node_embeddings(self, graphs):
                seen.append(graphs.x.clone())
                return torch.zeros(len(graphs.x), 4)

        task = AttributeMasking(GraphSpec(), torch.tensor([[5, 0]]), width=4, rate=0.15)
        ones, others = read_molecule("CCO"), read_molecule("CCO").clone()
        others.x = torch.tensor([[7, 1], [7, 1], [7, 1]])
        for graph in (ones, others):
            task(Network(), GraphBatch.from_data_list([graph]), torch.Generator().manual_seed(0))
        (hidden,) = draw_masked_nodes(
            torch.zeros(3, dtype=torch.long), 0.15, torch.Generator().manual_seed(0)
        )
        for x in seen:
            assert x[hidden].tolist() == [119, 0]
        assert seen[1].tolist().count([7, 1]) == 2
        assert read_molecule("CCO").x.tolist() == [[5, 0], [5, 0], [7, 0]]

    def test_scores_are_those_of_torch(self):
        graphs = GraphBatch.from_data_list([read_molecule("CCO"), read_molecule("CCCCCCCCN")])
        task = AttributeMasking(GraphSpec(), graphs.x, width=4, rate=0.3)
        torch.manual_seed(0)
        features = torch.randn(len(graphs.x), 4)

        class Network:
            def node_embeddings(self, graphs):
                return features

        scored = task(Network(), graphs, torch.Generator().manual_seed(0))
        hidden = draw_masked_nodes(graphs.groups, 0.3, torch.Generator().manual_seed(0))
        outputs, elements = task.head(features[hidden]), graphs.x[hidden, 0]
        loss = torch.nn.functional.cross_entropy(outputs, elements)
        torch.testing.assert_close(scored.loss, loss)
        assert scored.score == (outputs.argmax(1) == elements).double().mean()
        assert scored.count == len(hidden) == 1 + 3
        guess = task.score_baseline(graphs, torch.Generator().manual_seed(0))
        assert guess.score == pytest.approx(float((elements == 5).float().mean()))

    def test_numbers_are_standardised(self):
        x = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 80.0]])
        spec = GraphSpec(node_features="numbers", num_node_features=2)
        task = AttributeMasking(spec, x, width=4, rate=0.99)
        graphs = GraphBatch.from_data_list(
            [Data(x=x, edge_index=torch.empty(2, 0, dtype=torch.long))]
        )
        guess = task.score_baseline(graphs, torch.Generator())
        assert task.metric_name == "share of variance explained"
        assert (float(guess.loss), guess.score) == pytest.approx((1.0, 0.0), abs=1e-6)

    def test_labels_of_nodes_are_classes(self):
        spec = GraphSpec(node_features="numbers", num_node_features=3)
        task = AttributeMasking(spec, torch.eye(3)[[0, 2, 2]], width=4, rate=0.15)
        assert (task.metric_name, int(task.usual)) == ("accuracy", 2)


class TestContext:
    def test_hops_are_those_of_networkx(self):
        graphs = GraphBatch.from_data_list(
            [read_molecule(text) for text in ("CC(C)CCc1ccncc1O", "C", "CC.CCCN")]
        )
        whole = networkx.Graph(graphs.edge_index.T.tolist())
        whole.add_nodes_from(range(len(graphs.x)))
        centers = draw_centers(graphs.groups, torch.Generator().manual_seed(1))
        assert graphs.groups[centers].tolist() == [0, 1, 2]
        expected = [5] * len(graphs.x)
        for center in centers.tolist():
            for node, hops in networkx.single_source_shortest_path_length(whole, center).items():
                expected[node] = min(hops, 5)
        assert count_hops(graphs, centers, 4).tolist() == expected

    def test_each_node_is_a_center_equally_often(self):
        groups, generator = graphs_of([3, 5]).groups, torch.Generator().manual_seed(0)
        drawn = torch.cat([draw_centers(groups, generator) for _ in range(3000)])
        often = torch.bincount(drawn, minlength=8) / 3000
        expected = torch.tensor([1 / 3] * 3 + [1 / 5] * 5)
        torch.testing.assert_close(often, expected, rtol=0, atol=0.03)

    def test_logits_are_products_of_centers_and_contexts(self):
        """Compare with a loop over graphs, with networks that return their inputs."""

        class Network(torch.nn.Module):
            layers = (None,) * 2  # so that contexts are 1 to 4 edges away, 1 and 2 shared

            def node_embeddings(self, graphs):
                return graphs.x.float() + graphs.groups[:, None]

        task = ContextPrediction.__new__(ContextPrediction)
        torch.nn.Module.__init__(task)
        task.context_network = Network()
        task.head = torch.nn.Linear(2, 2)
        graphs = GraphBatch.from_data_list(
            [read_molecule(text) for text in ("CCCCON", "C", "OCC", "NCCCCCCCF")]
        )
        centers = draw_centers(graphs.groups, torch.Generator().manual_seed(3))
        hops = count_hops(graphs, centers, 5)
        ones, others = [], []
        for center in (centers[0], centers[2], centers[3]):  # the second has no context
            mine = graphs.groups == graphs.groups[center]
            features = graphs.x.float() + graphs.groups[:, None]
            ones.append(features[center])
            others.append(features[mine & (hops >= 1) & (hops <= 2)].mean(dim=0))
        ones = [task.head(one).detach() / 2**0.5 for one in ones]
        yes = [float(one @ other) for one, other in zip(ones, others, strict=True)]
        no = [float(ones[i] @ others[(i + 1) % 3]) for i in range(3)]
        logits = torch.tensor([*yes, *no])
        answers = torch.tensor([1.0] * 3 + [0.0] * 3)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, answers)
        scored = task(Network(), graphs, torch.Generator().manual_seed(3))
        torch.testing.assert_close(scored.loss, loss)
        right = ((logits > 0) == (answers > 0)).float().mean()
        assert (scored.score, scored.count) == (float(right), 6)

    def test_single_atoms_have_no_targets(self):
        backbone = load_graph_backbone(
            "pyg/GIN-2x4", num_outputs=1, spec=GraphSpec(), pretrained=False
        )
        graphs = GraphBatch.from_data_list([read_molecule("C"), read_molecule("O")])
        network = backbone.module
        assert ContextPrediction(network)(network, graphs, torch.Generator()) is None

    @pytest.mark.parametrize(("count", "what"), [(0, "18 training"), (9, "2 held-out")])
    def test_graphs_without_contexts_are_an_error(self, tmp_path, count, what):
        """Stars have no nodes four edges apart."""
        path = tmp_path / "some.smi"
        stars = [f"{a}C({b})({c})F" for a in "NOSF" for b in "NO" for c in ("S", "Cl", "Br")][:20]
        chains = [f"CCCCCCCCC{'C' * n}" for n in range(count)]
        path.write_text("\n".join([*chains, *stars][:20]))
        objective = "context-prediction"
        options = small(path, tmp_path / "out", objective=objective, model="pyg/GIN-5x8", seed=1)
        with pytest.raises(UserError, match=f"4 edges apart.*{what}.*attribute-masking"):
            pretrain(options)
        assert not (tmp_path / "out").exists()

    def test_it_learns(self, tmp_path):
        path = tmp_path / "some.smi"
        chains = [f"{a * n}{b}" for a in "CNOS" for n in range(4, 9) for b in ("", a + "-" + a)]
        path.write_text("\n".join(chains))
        objective = "context-prediction"
        options = small(
            path, tmp_path / "out", objective=objective, epochs=20, lr=0.03, batch_size=16
        )
        found = pretrain(options)
        assert found.chance.score == 0.5
        assert found.after.score > 0.7


class TestPretraining:
    def test_it_learns(self, smiles, tmp_path):
        found = pretrain(small(smiles, tmp_path / "out", epochs=25, lr=0.01, model="pyg/GIN-4x32"))
        assert found.metric_name == "accuracy"
        assert found.after.loss < found.before.loss
        assert found.after.score > found.chance.score

    def test_equal_options_produce_equal_bytes_and_another_seed_does_not(self, smiles, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            torch.manual_seed(seed + 7)  # which must not change the result
            pretrain(small(smiles, tmp_path / name, seed=seed))
        read = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in "abc"}
        assert read["a"] == read["b"]
        assert read["a"] != read["c"]

    def test_train_loads_the_weights(self, smiles, tmp_path):
        pretrain(small(smiles, tmp_path / "out"))
        file = tmp_path / "out" / "weights.safetensors"
        backbone = load_graph_backbone(
            "pyg/GIN-2x16", num_outputs=4, spec=GraphSpec(), weights=file
        )
        tensors = load_file(file)
        own = backbone.module.state_dict()
        assert {name for name in own if not name.startswith("head.")} == set(tensors)
        assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())

    def test_the_folder_has_config_metrics_and_log(self, smiles, tmp_path):
        found = pretrain(small(smiles, tmp_path / "out"))
        config = json.loads((found.folder / "config.json").read_text())
        assert config["model"] == "pyg/GIN-2x16"
        assert (config["num_train_graphs"], config["num_held_out_graphs"]) == (36, 4)
        assert config["after"] == {"loss": found.after.loss, "score": found.after.score}
        with (found.folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]
        assert float(rows[-1]["held_out_loss"]) == found.after.loss
        assert "epoch    2" in (found.folder / "train.log").read_text()

    def test_training_continues_from_weights(self, smiles, tmp_path):
        first = pretrain(small(smiles, tmp_path / "a", lr=0.01))
        file = str(first.folder / "weights.safetensors")
        small_step = small(smiles, tmp_path / "b", epochs=1, lr=1e-12, weights=file)
        again = pretrain(small_step)
        before, after = (load_file(f.folder / "weights.safetensors") for f in (first, again))
        torch.testing.assert_close(
            before["layers.1.convolution.nn.lins.0.weight"],
            after["layers.1.convolution.nn.lins.0.weight"],
        )

    def test_the_networks_of_hu_et_al_can_be_pretrained(self, smiles, tmp_path):
        model = "pretrain-gnns/graphsage"
        found = pretrain(small(smiles, tmp_path / "out", model=model, epochs=1, batch_size=32))
        assert found.after.loss < found.before.loss

    def test_divergence_is_an_error(self, smiles, tmp_path, monkeypatch):
        monkeypatch.setattr(
            GraphNetwork, "node_embeddings", lambda *_: torch.full((999, 16), torch.nan)
        )
        with pytest.raises(UserError, match=r"diverged in epoch 1 .*smaller value than `lr=0.001`"):
            pretrain(small(smiles, tmp_path / "out"))
        assert not (tmp_path / "out" / "weights.safetensors").exists()


class TestData:
    def test_invalid_smiles_are_named_and_counted(self, tmp_path):
        path = tmp_path / "some.txt"
        path.write_text("\n".join([*SMILES, "C1CC", "", "Dear Sir", SMILES[0]]))
        found = read_unlabelled(small(path, tmp_path))
        assert len(found.graphs) == len(SMILES)
        assert found.notes[0] == "duplicates left out: 1"
        assert found.notes[1].startswith("invalid SMILES left out: 2, such as 'C1CC' (")

    def test_a_csv_file_has_a_column(self, tmp_path):
        path = tmp_path / "some.csv"
        path.write_text("\n".join(["id,Molecule", *(f"1,{text}" for text in SMILES)]))
        found = read_unlabelled(small(path, tmp_path, smiles_column="molecule"))
        assert len(found.graphs) == len(SMILES)
        with pytest.raises(UserError, match=r"lacks the column 'smiles' \(it has 'id', 'Molecule'"):
            read_unlabelled(small(path, tmp_path))

    def test_the_test_split_of_a_named_set_is_left_out(self, tmp_path):
        rows = [f"{text},{i % 2}" for i, text in enumerate(RINGS)]
        (tmp_path / "BBBP.csv").write_text("\n".join(["smiles,p_np", *rows]))
        options = small(Path("moleculenet/BBBP"), tmp_path, data_root=str(tmp_path))
        found = read_unlabelled(options)
        assert len(found.graphs) == 20

    @pytest.mark.parametrize("split", ["scaffold", "random"])
    def test_it_is_the_test_split_that_train_has(self, tmp_path, split):
        rows = [f"{text},{i % 2}" for i, text in enumerate(RINGS)]
        (tmp_path / "BBBP.csv").write_text("\n".join(["smiles,p_np", *rows]))
        data, root = "moleculenet/BBBP", str(tmp_path)
        found = read_unlabelled(small(Path(data), tmp_path, split=split, seed=3, data_root=root))
        task = load_data(
            data, seed=3, data_root=root, molecule_options=MoleculeOptions(split=split)
        )
        learnt = [read_molecule(path) for path in (*task.train.paths, *task.val.paths)]
        for graph, other in zip(found.graphs, learnt, strict=True):
            assert graph.x.tolist() == other.x.tolist()
            assert graph.edge_index.tolist() == other.edge_index.tolist()

    def test_rows_for_the_test_are_left_out(self, tmp_path):
        path = tmp_path / "some.csv"
        splits = ["Test" if i % 4 == 0 else "val" if i % 4 == 1 else "train" for i in range(24)]
        rows = [f"{text},{split}" for text, split in zip(RINGS, splits, strict=True)]
        path.write_text("\n".join(["smiles,Split", *rows]))
        found = read_unlabelled(small(path, tmp_path))
        rest = [text for i, text in enumerate(RINGS) if i % 4]
        assert [len(graph.x) for graph in found.graphs] == [len(read_molecule(s).x) for s in rest]
        assert found.notes == ("6 rows of the split test are left out",)
        path.write_text("\n".join(["smiles,split", *(f"{text},test" for text in RINGS)]))
        with pytest.raises(UserError, match="only 0 graphs"):
            read_unlabelled(small(path, tmp_path))

    def test_molecules_of_rdkit_need_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "delta_transfer.data.molecules.nci.load_nci_smiles", lambda: tuple(SMILES)
        )
        found = read_unlabelled(small(Path("rdkit/nci"), tmp_path))
        assert (len(found.graphs), found.spec) == (len(SMILES), GraphSpec())


def test_the_command_prints_scores_and_the_file(capsys, smiles, tmp_path):
    out = tmp_path / "out"
    flags = ["--model=pyg/GIN-2x8", "--epochs=1", "--device=cpu", f"--out={out}"]
    assert main.main(["pretrain", str(smiles), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy on held-out graphs:"
    assert lines[-1].split() == ["weights", str(out / "weights.safetensors")]
    assert isinstance(float(lines[2].split()[0]), float)

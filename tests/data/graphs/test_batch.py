import pickle

import pytest
import torch

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data

from delta_transfer.data.graphs.batch import GraphBatch
from delta_transfer.data.graphs.loader import GraphDataset, graph_dataloader
from delta_transfer.data.samplers import DistributedEpochSampler, EpochSampler
from delta_transfer.data.task import Split

CPU = torch.device("cpu")


def path_graph(nodes: int, *, first: int = 0) -> Data:
    """Nodes in a row; features number the nodes and the edges from `first` on."""
    there = torch.arange(nodes - 1)
    edges = torch.stack([torch.cat([there, there + 1]), torch.cat([there + 1, there])])
    return Data(
        x=first + torch.arange(nodes)[:, None],
        edge_index=edges,
        edge_attr=first + torch.arange(edges.shape[1])[:, None],
    )


GRAPHS = [path_graph(3), path_graph(1, first=10), path_graph(2, first=20), path_graph(4, first=30)]


def equal(ours: GraphBatch, expected: list[Data]) -> bool:
    """Whether they are these graphs, put together by hand."""
    sizes = [len(graph.x) for graph in expected]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    edges = [graph.edge_index + start for graph, start in zip(expected, starts, strict=True)]
    groups = [i for i, size in enumerate(sizes) for _ in range(size)]
    return (
        torch.equal(ours.x, torch.cat([graph.x for graph in expected]))
        and torch.equal(ours.edge_index, torch.cat(edges, dim=1))
        and torch.equal(ours.edge_attr, torch.cat([graph.edge_attr for graph in expected]))
        and ours.groups.tolist() == groups
        and len(ours) == len(expected)
    )


class TestGraphs:
    def test_graphs_stand_side_by_side(self) -> None:
        assert equal(GraphBatch.from_data_list(GRAPHS), GRAPHS)

    @pytest.mark.parametrize("chosen", [slice(0, 2), slice(1, 2), slice(2, 9), slice(None)])
    def test_a_slice_has_the_same_graphs(self, chosen: slice) -> None:
        assert equal(GraphBatch.from_data_list(GRAPHS)[chosen], GRAPHS[chosen])

    def test_slices_of_slices(self) -> None:
        assert equal(GraphBatch.from_data_list(GRAPHS)[1:][1:], GRAPHS[2:])

    def test_comes_back_from_a_pickle(self) -> None:
        again = pickle.loads(pickle.dumps(GraphBatch.from_data_list(GRAPHS)))
        assert equal(again, GRAPHS)
        assert equal(again[1:3], GRAPHS[1:3])

    def test_moves_and_stays(self) -> None:
        graphs = GraphBatch.from_data_list(GRAPHS)
        moved = graphs.to("meta")
        assert (moved.device.type, moved.edge_index.device.type) == ("meta", "meta")
        assert graphs.device == CPU
        assert equal(graphs, GRAPHS)

    def test_edges_without_features(self) -> None:
        graphs = GraphBatch.from_data_list(
            [Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [1]]))]
        )
        assert graphs.edge_attr is None


def of(labels: tuple) -> Split:
    """The graphs with these labels."""
    names = tuple("abcd"[: len(labels)])
    return Split(names, labels, dict(zip(names, GRAPHS, strict=True)).__getitem__)


class TestLoader:
    def test_in_order(self) -> None:
        batches = list(graph_dataloader(of((0, 1, 1, 0)), batch_size=3, device=CPU))
        assert equal(batches[0][0], GRAPHS[:3])
        assert equal(batches[1][0], GRAPHS[3:])
        assert [targets.tolist() for _, targets in batches] == [[0, 1, 1], [0]]
        assert batches[0][1].dtype == torch.long

    def test_missing_answers(self) -> None:
        split = of(((1.0, float("nan")), (0.0, 1.0), (float("nan"), 0.0), (1.0, 1.0)))
        ((_, targets),) = graph_dataloader(split, batch_size=4, device=CPU)
        assert (targets.shape, targets.dtype) == ((4, 2), torch.float32)
        assert targets.isnan().nonzero().tolist() == [[0, 1], [2, 0]]

    def test_by_seed_and_epoch(self) -> None:
        sampler = EpochSampler(4, seed=5)
        loader = graph_dataloader(of((0, 1, 2, 3)), batch_size=2, device=CPU, sampler=sampler)
        sampler.set_epoch(3)
        order = [index for _, index in sampler]
        batches = list(loader)
        assert torch.cat([targets for _, targets in batches]).tolist() == order
        assert equal(batches[0][0], [GRAPHS[i] for i in order[:2]])

    def test_leaves_a_small_last_batch_out(self) -> None:
        loader = graph_dataloader(of((0, 1, 2, 3)), batch_size=3, device=CPU, drop_last=True)
        assert [len(graphs) for graphs, _ in loader] == [3]

    def test_a_share_of_each_batch(self) -> None:
        order = EpochSampler(4, seed=0)
        share = DistributedEpochSampler(order, batch_size=2, rank=1, world_size=2)
        loader = graph_dataloader(of((0, 1, 2, 3)), batch_size=1, device=CPU, sampler=share)
        assert [int(targets) for _, targets in loader] == [index for _, index in order][1::2]

    def test_leaves_the_global_random_state_alone(self) -> None:
        before = torch.get_rng_state()
        list(graph_dataloader(of((0, 1, 2, 3)), batch_size=2, device=CPU))
        assert torch.equal(torch.get_rng_state(), before)

    def test_pairs_of_epoch_and_index(self) -> None:
        dataset = GraphDataset(of((0, 1, 2, 3)))
        assert dataset[7, 2] == (GRAPHS[2], 2)
        assert len(dataset) == 4

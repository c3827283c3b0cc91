import logging
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

from torch_geometric.datasets import TUDataset

from delta_transfer.data.graphs.tudataset import MAX_DEGREE, read_graphs
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "graphs"

# Paths of three nodes, and single nodes; the last graph has no edge.
COUNT = 40


def write(folder: Path, *, name: str = "TOY", **files: str) -> Path:
    """Writes the text files of a data set of 20 paths and 20 points, one after the other."""
    edges, indicator, node = [], [], 1
    for graph in range(1, COUNT + 1):
        size = 3 if graph % 2 else 1
        indicator += [graph] * size
        edges += [(node + i, node + i + 1) for i in range(size - 1)]
        node += size
    texts = {
        "A": "".join(f"{a}, {b}\n{b}, {a}\n" for a, b in edges),
        "graph_indicator": "".join(f"{graph}\n" for graph in indicator),
        "graph_labels": "1\n-1\n" * (COUNT // 2),
        **files,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for key, text in texts.items():
        (folder / f"{name}_{key}.txt").write_text(text)
    return folder


def load(root: Path, seed: int = 0, name: str = "TOY") -> TaskData:
    return load_data(f"tu/{name}", seed=seed, data_root=str(root))


NODES = COUNT // 2 * 4


class TestFiles:
    def test_degrees_where_there_is_nothing_else(self, tmp_path: Path) -> None:
        graphs = read_graphs(str(write(tmp_path)), "TOY")
        assert len(graphs) == COUNT
        assert graphs[0].x.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
        assert sorted(graphs[2].edge_index.t().tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
        assert graphs[-1].x.tolist() == [[1, 0, 0]]
        assert graphs[-1].edge_index.shape == (2, 0)
        assert graphs[0].x.dtype == torch.float32

    def test_attributes_and_labels(self, tmp_path: Path) -> None:
        labels = "".join(f"{5 + i % 3}\n" for i in range(NODES))
        attributes = "".join(f"{i / 2}, {-i}\n" for i in range(NODES))
        folder = write(tmp_path, node_labels=labels, node_attributes=attributes)
        graphs = read_graphs(str(folder), "TOY")
        assert graphs[1].x.tolist() == [[1.5, -3, 1, 0, 0]]
        assert graphs[2].x.tolist() == [[2, -4, 0, 1, 0], [2.5, -5, 0, 0, 1], [3, -6, 1, 0, 0]]

    def test_many_degrees(self, tmp_path: Path) -> None:
        nodes = MAX_DEGREE + 10
        files = {
            "A": "".join(f"1, {i}\n{i}, 1\n" for i in range(2, nodes + 1)),
            "graph_indicator": "1\n" * nodes + "2\n",
            "graph_labels": "1\n2\n",
        }
        graph, _ = read_graphs(str(write(tmp_path, **files)), "TOY")
        assert graph.x.shape == (nodes, MAX_DEGREE + 1)
        assert graph.x.argmax(dim=1).tolist() == [MAX_DEGREE] + [1] * (nodes - 1)


class TestTask:
    @pytest.mark.parametrize("place", ["TOY/raw", "toy/RAW", "TOY", "."])
    def test_where_the_files_may_lie(self, place: str, tmp_path: Path) -> None:
        folder = write(tmp_path / place)
        before = sorted(folder.iterdir())
        task = load(tmp_path, name="toy")
        assert (task.name, task.kind, task.classes) == ("tu/TOY", "graphs", ("-1", "1"))
        assert (task.metric, task.val_drawn, task.sample_type) == ("accuracy", True, "graph")
        assert sorted(folder.iterdir()) == before  # nothing is written there
        assert task.train.labels[0] == 1 - int(task.train.paths[0][-1]) % 2

    def test_samples_per_class_are_graphs(self, tmp_path: Path) -> None:
        write(tmp_path)
        task = load_data("tu/TOY", seed=0, samples_per_class=3, data_root=str(tmp_path))
        assert len(task.train) == 6
        assert task.notes[-1].startswith("3 training graphs of every class, drawn by seed 0: 6 of ")

    def test_ten_seeds_are_a_cross_validation(self, tmp_path: Path) -> None:
        write(tmp_path)
        tasks = [load(tmp_path, seed) for seed in range(10)]
        tested = [path for task in tasks for path in task.test.paths]
        assert len(set(tested)) == len(tested) == COUNT
        for task in tasks:
            assert sorted(task.test.labels) == [0, 0, 1, 1]
            everything = task.train.paths + task.val.paths + task.test.paths
            assert len(set(everything)) == len(everything) == COUNT
        assert load(tmp_path, 13).test == tasks[3].test
        assert load(tmp_path, 3) == tasks[3]
        assert "tested on fold 3 (from 0) of 10 stratified ones" in tasks[3].notes[0]

    def test_a_class_with_fewer_graphs_than_folds(self, tmp_path: Path) -> None:
        write(tmp_path, graph_labels="1\n" * (COUNT - 5) + "2\n" * 5)
        tasks = [load(tmp_path, seed) for seed in range(10)]
        tested = [path for task in tasks for path in task.test.paths]
        assert len(set(tested)) == len(tested) == COUNT
        assert [sum(task.test.labels) for task in tasks].count(1) == 5

    def test_a_class_of_which_one_is_left(self, tmp_path: Path) -> None:
        write(tmp_path, graph_labels="1\n" * (COUNT - 2) + "2\n" * 2)
        without = [seed for seed in range(10) if not self.fails(tmp_path, seed)]
        assert len(without) == 8
        assert all(sorted(load(tmp_path, seed).val.labels)[-1] == 1 for seed in without)

    def fails(self, root: Path, seed: int) -> bool:
        """Whether so few are left of a class that another seed is advised."""
        try:
            load(root, seed)
        except UserError as error:
            return "class '2' has 1: choose another seed" in str(error)
        return False

    @pytest.mark.parametrize("place", ["folds_src/10fold_idx", "10fold_idx", "raw/10fold_idx"])
    def test_published_folds(self, place: str, tmp_path: Path) -> None:
        write(tmp_path / "TOY/raw")
        folds = tmp_path / "TOY" / place
        folds.mkdir(parents=True)
        for number in range(10):
            text = "\n".join(str(i) for i in range(number, COUNT - 1, 10))
            (folds / f"test_idx-{number + 1}.txt").write_text(text)
        task = load(tmp_path, 12)
        assert task.test.paths == ("TOY/0002", "TOY/0012", "TOY/0022", "TOY/0032")
        assert "TOY/0039" in (*task.train.paths, *task.val.paths)  # in no fold
        assert "of 10 published ones" in task.notes[0]

    def test_the_reader_comes_back_from_a_pickle(self, tmp_path: Path) -> None:
        task_split = load(write(tmp_path)).train
        read = pickle.loads(pickle.dumps(task_split.read))
        assert read("TOY/0002") is task_split.read("TOY/0002")

    def test_a_pickle_in_the_folder_is_not_read(self, tmp_path: Path) -> None:
        write(tmp_path / "TOY/raw")
        (tmp_path / "TOY/processed").mkdir()
        trap = tmp_path / "TOY/processed/data.pt"
        trap.write_bytes(pickle.dumps(Trap(tmp_path)))
        load(tmp_path)
        assert not (tmp_path / "trapped").exists()
        assert trap.is_file()

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"graph_labels": "1\n2\n"}, "there are 40 graphs, and labels of 2"),
            ({"graph_labels": "1, 2\n" * COUNT}, "each graph must have one label"),
            ({"graph_labels": "x\n" * COUNT}, "cannot be used"),
            ({"graph_indicator": "2\n" * NODES}, "must start at 1 and be in order"),
            ({"A": "1, 5\n5, 1\n"}, "an edge must join two nodes of one graph"),
            ({"A": ""}, "cannot be used"),
            ({"graph_labels": "1\n" * 39 + "2\n"}, r"at least 2 .*class '2' has 1"),
            ({"graph_labels": "1\n2\n3\n4\n5\n" * 8}, "only 8 graphs in its largest class"),
        ],
    )
    def test_files_that_do_not_belong_together(
        self, files: dict[str, str], message: str, tmp_path: Path
    ) -> None:
        write(tmp_path, **files)
        with pytest.raises(UserError, match=message):
            load(tmp_path)

    @pytest.mark.parametrize("text", ["1\n40\n", "1\n0\n", "x"])
    def test_folds_that_are_none(self, text: str, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "10fold_idx").mkdir()
        for number in range(1, 11):
            (tmp_path / f"10fold_idx/test_idx-{number}.txt").write_text(
                "0" if number == 1 else text
            )
        with pytest.raises(UserError, match="cannot be used"):
            load(tmp_path)

    def test_names_and_splits_that_there_are_not(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"'tu/\.\./TOY' is not the name of a dataset"):
            load(tmp_path, name="../TOY")
        write(tmp_path)
        with pytest.raises(UserError, match=r"tu/TOY has its own test split"):
            load_data("tu/TOY", seed=0, test_split="0.2", data_root=str(tmp_path))


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self.folder / "trapped",)


class TestDownload:
    @pytest.fixture
    def archive(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder in the place of the archive, with the packed data set."""
        files = write(tmp_path / "files")
        (tmp_path / "archive").mkdir()
        with zipfile.ZipFile(tmp_path / "archive/TOY.zip", "w") as packed:
            for file in files.iterdir():
                packed.write(file, f"TOY/{file.name}")
        monkeypatch.setattr(TUDataset, "url", (tmp_path / "archive").as_uri())
        return tmp_path / "archive"

    def test_once(self, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        root = tmp_path / "root"
        with caplog.at_level(logging.INFO):
            first = load(root)
        assert f"downloading tu/TOY to {root / 'TOY/raw'}" in caplog.text
        (archive / "TOY.zip").unlink()
        assert load(root) == first
        assert {path.suffix for path in root.rglob("*")} == {"", ".txt"}

    def test_nothing_half_done_stays(self, archive: Path, tmp_path: Path) -> None:
        (archive / "TOY.zip").write_bytes((archive / "TOY.zip").read_bytes()[:-40])
        with pytest.raises(UserError, match=r"is not in .*downloading it failed .*TOY\.zip"):
            load(tmp_path / "root")
        assert not (tmp_path / "root").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_proteins() -> None:
    task = load(SHARED, name="PROTEINS")
    assert sum(map(len, (task.train, task.val, task.test))) == 1113
    labels = (*task.train.labels, *task.val.labels, *task.test.labels)
    assert (labels.count(0), labels.count(1)) == (663, 450)
    assert (len(task.test), task.test.paths[:2]) == (111, ("PROTEINS/0003", "PROTEINS/0010"))
    assert task.train.read("PROTEINS/0000").x.shape == (42, 3)
    assert "published" in task.notes[0]

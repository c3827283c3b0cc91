import dataclasses
import gzip
import logging
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

from delta_transfer.data.molecules import moleculenet
from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.molecules.scaffold_split import scaffold
from delta_transfer.data.registry import load_data, load_labelled_data
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError
from delta_transfer.metrics.task_types import MultilabelBinary, Regression

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "graphs" / "moleculenet"

RINGS = [
    "c1ccccc1", "C1CCCCC1", "c1ccncc1", "c1ccoc1", "c1ccsc1", "C1CCCC1", "C1CC1", "C1CCC1",
    "c1cc[nH]c1", "C1CCNCC1",
]  # fmt: skip
TAILS = ["C", "CC", "CO", "CN", "CS"]
SMILES = [tail + ring for tail in TAILS for ring in RINGS]


def table(*columns: str, smiles: str = "smiles", more: str = "") -> str:
    """A file of 50 molecules with ten scaffolds, and columns of labels 0, 1, 0, 1..."""
    lines = [",".join([smiles, *columns])]
    for number, text in enumerate(SMILES):
        lines.append(",".join([text, *(str((number // 5 + i) % 2) for i in range(len(columns)))]))
    return "\n".join([*lines, *more.splitlines()]) + "\n"


def write(file: Path, text: str) -> Path:
    """Writes a file, packed if it is called so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def assert_no_shared_scaffold(task: TaskData) -> None:
    parts = [{scaffold(path) for path in s.paths} for s in (task.train, task.val, task.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))


class TestMoleculeNet:
    @pytest.mark.parametrize(
        "file",
        [
            "BBBP/raw/BBBP.csv", "bbbp/BBBP.csv", "BBBP.csv", "bbbp.CSV", "BBBP.csv.gz",
            "Bbbp/RAW/bbbp.csv.gz",
        ],
    )  # fmt: skip
    def test_where_the_file_may_lie(self, file: str, tmp_path: Path) -> None:
        write(tmp_path / file, table("p_np"))
        task = load_data("moleculenet/bbbp", seed=0, data_root=str(tmp_path))
        assert task.name == "moleculenet/BBBP"
        assert task.test is not None
        assert [len(s) for s in (task.train, task.val, task.test)] == [40, 5, 5]

    def test_the_task(self, tmp_path: Path) -> None:
        write(
            tmp_path / "BBBP.csv", "num,name," + table("p_np").replace("\n", "\n7,x,").rstrip("7,x")
        )
        task = load_data("moleculenet/BBBP", seed=0, data_root=str(tmp_path))
        assert (task.kind, task.metric, task.classes) == ("graphs", "roc_auc", ("p_np",))
        assert task.task_type == MultilabelBinary(labelled_fraction=1.0)
        assert not task.val_drawn
        assert_no_shared_scaffold(task)
        position = SMILES.index(task.train.paths[3])
        assert task.train.labels[3] == (float(position // 5 % 2),)
        assert task.train.read("Cc1ccncc1").x.shape == (7, 2)

    def test_missing_answers(self, tmp_path: Path) -> None:
        text = table("a", "b").replace("\nCc1ccncc1,0,1", "\nCc1ccncc1,,1")
        write(tmp_path / "sider.csv.gz", text)
        task = load_data("moleculenet/sider", seed=0, data_root=str(tmp_path))
        where = task.train.paths.index("Cc1ccncc1")
        assert math.isnan(task.train.labels[where][0])
        assert task.train.labels[where][1] == 1
        assert task.task_type == MultilabelBinary(labelled_fraction=1 - 1 / 80)

    def test_values(self, tmp_path: Path) -> None:
        lines = ["mol,expt,iupac,smiles,calc"]
        lines += [f"1,{number / 2},some name,{text},9" for number, text in enumerate(SMILES)]
        write(tmp_path / "freesolv/raw/SAMPL.csv", "\n".join(lines))
        task = load_data("moleculenet/FreeSolv", seed=0, data_root=str(tmp_path))
        values = torch.tensor(task.train.labels)
        assert isinstance(task.task_type, Regression)
        assert task.task_type.mean == pytest.approx((float(values.mean()),))
        assert task.task_type.std == pytest.approx((float(values.std(correction=0)),))
        assert (task.metric, task.classes) == ("rmse", ("expt",))
        assert "80/10/10 split, drawn at random, seed 0" in task.notes
        other = load_data("moleculenet/FreeSolv", seed=1, data_root=str(tmp_path))
        assert other.train.paths != task.train.paths
        by_scaffold = MoleculeOptions(split="scaffold")
        same = [
            load_data(
                "moleculenet/FreeSolv",
                seed=s,
                data_root=str(tmp_path),
                molecule_options=by_scaffold,
            )
            for s in (0, 1)
        ]
        assert same[0].train.paths == same[1].train.paths

    def test_an_invalid_smiles_is_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "BBBP.csv", table("p_np", more="CN(C)(C)C,1\nC(,0\n"))
        task = load_data("moleculenet/BBBP", seed=0, data_root=str(tmp_path))
        assert task.notes[0] == (
            "2 of 52 SMILES are invalid and left out: line 52 ('CN(C)(C)C': Explicit "
            "valence for atom # 1 N, 4, is greater than permitted), line 53 ('C(': its syntax is "
            "wrong)"
        )
        assert sum(len(s) for s in (task.train, task.val, task.test)) == 50

    def test_the_same_molecule_twice(self, tmp_path: Path) -> None:
        write(tmp_path / "BBBP.csv", table("p_np", more=f"{SMILES[0]},1\n"))
        task = load_data("moleculenet/BBBP", seed=0, data_root=str(tmp_path))
        assert f"{SMILES[0]} line 52" in task.train.paths
        assert torch.equal(task.train.read(f"{SMILES[0]} line 52").x, task.train.read(SMILES[0]).x)

    def test_the_same_twice(self, tmp_path: Path) -> None:
        write(tmp_path / "BBBP.csv", table("p_np"))
        assert load_data("moleculenet/BBBP", seed=0, data_root=str(tmp_path)) == load_data(
            "moleculenet/BBBP", seed=5, data_root=str(tmp_path)
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty: .* a CSV file"),
            ("smiles,p_np\n", "has no rows below its header"),
            ("name,p_np\nx,1\n", "lacks the column 'smiles'"),
            (table("p_np").replace(",1\n", ",2\n"), "must be 0, 1 or empty, as in molecul"),
            (table("p_np").replace(",1\n", ",0\n"), "no column of labels has two different values"),
            ("smiles,p_np\nx,1\ny,0\n", "'smiles' has no valid SMILES"),
            ("smiles,p_np\nCCO,1\nCCC,0\n", "no molecule is left for .* only 1 scaffolds"),
        ],
    )
    def test_a_file_that_is_not_as_it_must_be(
        self, text: str, message: str, tmp_path: Path
    ) -> None:
        write(tmp_path / "BBBP.csv", text)
        with pytest.raises(UserError, match=message):
            load_data("moleculenet/BBBP", seed=0, data_root=str(tmp_path))

    def test_a_packed_file_that_is_not_whole(self, tmp_path: Path) -> None:
        file = write(tmp_path / "sider.csv.gz", table("a"))
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(UserError, match=r"is damaged .*: download it again"):
            load_data("moleculenet/sider", seed=0, data_root=str(tmp_path))

    def test_a_test_split_or_name_that_there_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="BBBP has its own test split"):
            load_data("moleculenet/BBBP", seed=0, test_split="0.2", data_root=str(tmp_path))
        with pytest.raises(UserError, match="did you mean moleculenet/BBBP"):
            load_data("moleculenet/BBP", seed=0)


class TestDownload:
    @pytest.fixture
    def archive(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder in the place of the archive."""
        folder = tmp_path / "archive"
        folder.mkdir()
        monkeypatch.setattr(moleculenet, "BASE_URL", folder.as_uri())
        return folder

    def test_once(self, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write(archive / "sider.csv.gz", table("a"))
        root = tmp_path / "root"
        with caplog.at_level(logging.INFO):
            first = load_data("moleculenet/sider", seed=0, data_root=str(root))
        assert f"downloading moleculenet/SIDER to {root / 'SIDER/raw'}" in caplog.text
        (archive / "sider.csv.gz").unlink()
        assert load_data("moleculenet/SIDER", seed=0, data_root=str(root)) == first
        assert [p.name for p in root.rglob("*")] == ["SIDER", "raw", "sider.csv.gz"]

    @pytest.mark.parametrize("page", [None, "<html>Log in to this network</html>"])
    def test_nothing_half_done_stays(self, page: str | None, archive: Path, tmp_path: Path) -> None:
        if page is not None:
            (archive / "BBBP.csv").write_text(page)
        with pytest.raises(UserError, match=r"is not in .*downloading it failed .*BBBP\.csv"):
            load_data("moleculenet/BBBP", seed=0, data_root=str(tmp_path / "root"))
        assert not (tmp_path / "root").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
class TestPublished:
    def test_bbbp(self) -> None:
        task = load_data("moleculenet/BBBP", seed=0, data_root=str(SHARED))
        assert [len(s) for s in (task.train, task.val, task.test)] == [1631, 204, 204]
        assert task.notes[0].startswith("11 of 2050 SMILES are invalid")

    @pytest.mark.slow
    def test_sider(self) -> None:
        task = load_data("moleculenet/SIDER", seed=0, data_root=str(SHARED))
        assert [len(s) for s in (task.train, task.val, task.test)] == [1141, 143, 143]
        assert len(task.classes) == 27


OPTIONS = MoleculeOptions(smiles_column="SMILES")


class TestCsv:
    def test_splits_are_drawn_by_scaffold(self, tmp_path: Path) -> None:
        file = write(tmp_path / "solubility.csv", table("toxic", smiles="Smiles"))
        task = load_data(
            str(file), seed=0, val_fraction=0.25, test_split="0.2", molecule_options=OPTIONS
        )
        assert (task.name, task.classes, task.metric) == ("solubility", ("toxic",), "roc_auc")
        assert [len(s) for s in (task.train, task.val, task.test)] == [30, 10, 10]
        assert_no_shared_scaffold(task)
        assert task.val_drawn
        assert task.notes == (
            "no validation split: 20% of train (10 molecules), drawn by scaffold, is held out",
            "no test split: 20% of train (10 molecules), drawn by scaffold, is held out",
            "label columns, binary: toxic",
        )

    def test_splits_are_drawn_at_random(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.csv", table("toxic", smiles="SMILES"))
        options = dataclasses.replace(OPTIONS, split="random")
        task = load_data(str(file), seed=0, val_fraction=0.2, molecule_options=options)
        assert task.test is None
        assert sorted(label for (label,) in task.val.labels) == [0.0] * 5 + [1.0] * 5
        assert "no test split: its metric will be null; `test_split=0.1` draws one" in task.notes
        other = load_data(str(file), seed=1, val_fraction=0.2, molecule_options=options)
        assert other.val.paths != task.val.paths

    def test_splits_are_given(self, tmp_path: Path) -> None:
        rows = ["smiles,y,split,note"]
        rows += [f"{s},{i / 4},{'train' if i < 30 else 'VALID'},x" for i, s in enumerate(SMILES)]
        file = write(
            tmp_path / "a.csv",
            "\n".join([*rows[:46], *(r.replace("VALID", "test") for r in rows[46:])]),
        )
        task = load_data(str(file), seed=0, molecule_options=OPTIONS)
        assert [len(s) for s in (task.train, task.val, task.test)] == [30, 15, 5]
        assert task.train.paths == tuple(SMILES[:30])
        assert isinstance(task.task_type, Regression)
        assert (task.metric, task.val_drawn) == ("rmse", False)
        assert "unused columns: note" in task.notes
        names, split, apart = load_labelled_data(str(file), seed=0, molecule_options=OPTIONS)
        assert (names, split.paths, apart) == (("y",), tuple(SMILES[45:]), True)

    def test_columns_of_labels(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.csv", table("id", "a, b", "c").replace("a, b", '"a, b"'))
        options = MoleculeOptions(smiles_column="smiles", label_columns='C,"a, b"')
        task = load_data(str(file), seed=0, molecule_options=options)
        assert task.classes == ("c", "a, b")
        assert task.train.labels[0] == (0.0, 1.0)

    def test_all_are_measured_without_a_test_split(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.csv", table("toxic"))
        _, split, apart = load_labelled_data(str(file), seed=0, molecule_options=OPTIONS)
        assert (len(split), apart) == (50, False)

    def test_a_mark_at_the_start_and_ends_of_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        file.write_bytes(b"\xef\xbb\xbf" + table("toxic").replace("\n", "\r\n").encode())
        assert load_data(str(file), seed=0, molecule_options=OPTIONS).classes == ("toxic",)

    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            (
                table("toxic"),
                {"smiles_column": "mol"},
                "lacks the column 'mol' .*'smiles', 'toxic'",
            ),
            (table("toxic"), {"label_columns": "toxi"}, "column of labels 'toxi': .*toxic"),
            (table(), {}, "no column beside 'smiles' has numbers"),
            (
                table("toxic") + "CCC,maybe\n",
                {"label_columns": "toxic"},
                r"line 52 \('maybe'\): the",
            ),
            (table("toxic") + "CCC,1,2\n", {}, r"line 52 \(3 fields, the header has 2\)"),
            (table("toxic") + ",1\n", {}, "line 52: the smiles is empty"),
            ("smiles,y,split\nCCO,1,tset\n", {}, r"line 2 \('tset'\): the split is unknown"),
            ("smiles,y,split\nCCO,1,test\n", {}, "with the split 'train': write 'train' into"),
            ("smiles;y\nCCO;1\n", {}, "semicolons"),
            ("smiles,y\nCCO\xff,1\n", {}, "valid SMILES"),
        ],
    )
    def test_mistakes(
        self, text: str, options: dict[str, str], message: str, tmp_path: Path
    ) -> None:
        file = write(tmp_path / "a.csv", text)
        with pytest.raises(UserError, match=message) as caught:
            load_data(
                str(file),
                seed=0,
                molecule_options=MoleculeOptions(**{"smiles_column": "smiles", **options}),
            )
        assert str(file) in str(caught.value)

    def test_options_that_do_not_suit(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.csv", table("toxic"))
        with pytest.raises(UserError, match=r"`smiles_column=SMILES`: '.*' is not a CSV file"):
            load_data(str(tmp_path), seed=0, molecule_options=OPTIONS)
        with pytest.raises(UserError, match="`smiles_column=SMILES`: 'tu/PROTEINS' is not a CSV"):
            load_data("tu/PROTEINS", seed=0, molecule_options=OPTIONS)
        with pytest.raises(UserError, match=r"`label_columns=toxic`: .*`smiles_column`"):
            load_data(str(file), seed=0, molecule_options=MoleculeOptions(label_columns="toxic"))
        with pytest.raises(UserError, match="`split=random`: only for molecules"):
            load_data(str(file), seed=0, molecule_options=MoleculeOptions(split="random"))


@pytest.mark.parametrize("library", ["rdkit", "torch_geometric"])
@pytest.mark.parametrize("data", ["moleculenet/BBBP", "tu/MUTAG"])
def test_without_the_libraries(library: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{data} needs .* pip install 'delta-transfer\[graph\]'"):
        load_data(data, seed=0)

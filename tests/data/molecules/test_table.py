from pathlib import Path

import pytest

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

from delta_transfer.data.molecules.table import read_molecules
from delta_transfer.data.sources import csv_rows
from delta_transfer.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.csv"
    path.write_text("smiles,split,note\nCCO,0,a\nCCC,1,b\n")
    return path


@pytest.mark.parametrize("label_columns", [(), ("Split",)])
def test_a_column_split_may_be_labels_where_splits_are_not_read(
    file: Path, label_columns: tuple[str, ...]
) -> None:
    table = read_molecules(file, smiles_column="smiles", label_columns=label_columns)
    assert (table.label_columns, table.labels, table.splits) == (("split",), ((0.0,), (1.0,)), None)
    assert table.unused_columns == ("note",)


def test_a_column_split_is_checked_where_splits_are_read(file: Path) -> None:
    file.write_text("smiles,split,y\nCCO,0,1\nCCC,1,2\n")
    with pytest.raises(DataError, match=r"line 2 \('0'\), line 3 \('1'\): .*write one of train"):
        read_molecules(file, smiles_column="smiles", use_split_column=True)


def test_the_file_is_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, parse = [], csv_rows._records
    monkeypatch.setattr(csv_rows, "_records", lambda *args: parsed.append(args[0]) or parse(*args))
    read_molecules(file, smiles_column="smiles")
    assert parsed == [file]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("name,split,split", r"lacks the column 'smiles' \(it has 'name', 'split', 'split'\)"),
        ("smiles,Split,split", "has the column 'split' twice: keep one"),
        ("smiles,SMILES,split", "has the column 'smiles' twice: keep one"),
    ],
)
def test_columns_that_are_missing_or_there_twice(file: Path, header: str, message: str) -> None:
    file.write_text(f"{header}\nCCO,0,1\n")
    with pytest.raises(DataError, match=message):
        read_molecules(file, smiles_column="smiles")

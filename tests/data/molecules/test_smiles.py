import pickle

import pytest
import torch

pytest.importorskip("torch_geometric")
pytest.importorskip("rdkit")

from delta_transfer.data.molecules.nci import load_nci_smiles
from delta_transfer.data.molecules.smiles import SmilesError, read_molecule

H, C, N, O, F, NA, CL, PT = 0, 5, 6, 7, 8, 10, 16, 77  # noqa: E741  # atomic number - 1
SINGLE, DOUBLE, TRIPLE, AROMATIC = range(4)
NONE, UP, DOWN = range(3)

Bond = tuple[int, int, int, int]  # from, to, type, direction

MOLECULES: dict[str, tuple[list[tuple[int, int]], list[Bond]]] = {
    "C": ([(C, 0)], []),
    "[Na+].[Cl-]": ([(NA, 0), (CL, 0)], []),
    "C=O": ([(C, 0), (O, 0)], [(0, 1, DOUBLE, NONE)]),
    "N#CO": ([(N, 0), (C, 0), (O, 0)], [(0, 1, TRIPLE, NONE), (1, 2, SINGLE, NONE)]),
    "F/C=C/F": (
        [(F, 0), (C, 0), (C, 0), (F, 0)],
        [(0, 1, SINGLE, UP), (1, 2, DOUBLE, NONE), (2, 3, SINGLE, UP)],
    ),
    "F/C=C\\F": (
        [(F, 0), (C, 0), (C, 0), (F, 0)],
        [(0, 1, SINGLE, UP), (1, 2, DOUBLE, NONE), (2, 3, SINGLE, DOWN)],
    ),
    "N[C@@H](C)O": (  # seen from N, the rest goes clockwise: hydrogen, C, O
        [(N, 0), (C, 1), (C, 0), (O, 0)],
        [(0, 1, SINGLE, NONE), (1, 2, SINGLE, NONE), (1, 3, SINGLE, NONE)],
    ),
    "N[C@H](C)O": (
        [(N, 0), (C, 2), (C, 0), (O, 0)],
        [(0, 1, SINGLE, NONE), (1, 2, SINGLE, NONE), (1, 3, SINGLE, NONE)],
    ),
    "[H]C([H])([H])F": ([(C, 0), (F, 0)], [(0, 1, SINGLE, NONE)]),
    "[H][H]": ([(H, 0), (H, 0)], [(0, 1, SINGLE, NONE)]),
    "c1ccoc1": (  # furan
        [(C, 0), (C, 0), (C, 0), (O, 0), (C, 0)],
        [(i, (i + 1) % 5, AROMATIC, NONE) for i in range(5)],
    ),
    "N->[Pt@SP1](F)(F)F": (  # a dative bond, and a chirality that is neither of the two
        [(N, 0), (PT, 0), (F, 0), (F, 0), (F, 0)],
        [(0, 1, SINGLE, NONE), *((1, i, SINGLE, NONE) for i in (2, 3, 4))],
    ),
    "[Og]": ([(117, 0)], []),  # the last element
}


@pytest.mark.parametrize("smiles", MOLECULES)
def test_atoms_and_bonds_as_written_by_hand(smiles: str) -> None:
    atoms, bonds = MOLECULES[smiles]
    graph = read_molecule(smiles)
    assert graph.x.tolist() == [list(atom) for atom in atoms]
    ends = [pair for a, b, *_ in bonds for pair in ((a, b), (b, a))]
    assert list(map(tuple, graph.edge_index.t().tolist())) == ends
    kinds = [list(kind) for *_, t, d in bonds for kind in ((t, d), (t, d))]
    assert graph.edge_attr.tolist() == kinds
    assert graph.edge_index.shape == (2, 2 * len(bonds))
    assert graph.edge_attr.shape == (2 * len(bonds), 2)
    assert {graph.x.dtype, graph.edge_index.dtype, graph.edge_attr.dtype} == {torch.long}


def test_what_follows_a_smiles_is_its_name() -> None:
    assert read_molecule("CCO line 3").x.tolist() == read_molecule("CCO").x.tolist()


def test_parsed_once() -> None:
    assert read_molecule("CCCCCO") is read_molecule("CCCCCO")
    assert pickle.loads(pickle.dumps(read_molecule)) is read_molecule


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("C(", "its syntax is wrong"),
        ("water", "its syntax is wrong"),
        ("c1cccc1", "Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4"),
        ("CN(C)(C)C", "Explicit valence for atom # 1 N, 4, is greater than permitted"),
        ("CC*", "it has an atom '*', which is not an element"),
        ("", "it has no atoms"),
        ("CC\u0421", "it has a character that is not allowed"),  # a Cyrillic C
        ("CC\0", "it has a character that is not allowed"),
    ],
)
def test_no_molecule(smiles: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SmilesError) as raised:
        read_molecule(smiles)
    assert str(raised.value) == (
        f"'{smiles}' is not a valid SMILES ({reason}): correct it, or leave it out"
    )
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_the_molecules_that_rdkit_brings() -> None:
    smiles = load_nci_smiles()
    assert len(smiles) == len(set(smiles)) == 4892
    assert smiles[0] == "CC1=CC(=O)C=CC1=O"
    assert max(int(read_molecule(s).edge_attr[:, 0].max()) for s in smiles[:500] if "=" in s) == 3

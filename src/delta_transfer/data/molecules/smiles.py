"""Molecules as graphs, from SMILES, with the features of Hu et al. 2020."""

from functools import lru_cache

import torch
from rdkit import Chem, rdBase
from torch_geometric.data import Data

from delta_transfer.errors import DataError

CACHE_SIZE = 200_000
"""The number of molecules that a process caches."""

_SHOWN = 60  # characters of a SMILES in a message

_CHIRALITY = {
    Chem.ChiralType.CHI_TETRAHEDRAL_CW: 1,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW: 2,
}
_BOND_TYPES = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
}
_BOND_DIRECTIONS = {
    Chem.BondDir.ENDUPRIGHT: 1,
    Chem.BondDir.ENDDOWNRIGHT: 2,
}


class SmilesError(DataError):
    """A SMILES is invalid.

    Attributes:
        smiles: the invalid one, shortened.
        reason: why, in a few words.
    """

    def __init__(self, smiles: str, reason: str) -> None:
        self.smiles = smiles if len(smiles) <= _SHOWN else f"{smiles[:_SHOWN]}..."
        self.reason = reason
        super().__init__(
            f"'{self.smiles}' is not a valid SMILES ({reason}): correct it, or leave it out"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle, as for an error from another process."""
        return type(self), (self.smiles, self.reason)


def smiles_of(name: str) -> str:
    """Return the SMILES in the name of a molecule, which is its first word.

    Example:
        >>> smiles_of("CCO line 3")
        'CCO'
    """
    return name.split(maxsplit=1)[0] if name.strip() else ""


def parse_smiles(name: str) -> Chem.Mol:
    """Parse a SMILES, without implicit hydrogens.

    Args:
        name: the SMILES, and anything after a space.

    Raises:
        SmilesError: if it is invalid, or has an atom that is not an element.
    """
    smiles = smiles_of(name)
    if not (smiles.isascii() and smiles.isprintable()):
        # RDKit would leave it out, and read the Cyrillic letter in "\u0421C" as nothing.
        raise SmilesError(smiles, "it has a character that is not allowed")
    with rdBase.BlockLogs():  # which would print the same to stderr
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise SmilesError(smiles, _fault(smiles))
    if not molecule.GetNumAtoms():
        raise SmilesError(smiles, "it has no atoms")
    if not all(atom.GetAtomicNum() for atom in molecule.GetAtoms()):
        raise SmilesError(smiles, "it has an atom '*', which is not an element")
    return molecule


@lru_cache(maxsize=CACHE_SIZE)
def read_molecule(name: str) -> Data:
    """Return the graph of a molecule: two features for each atom, and two for each bond.

    `x` `[R, 2]` holds atomic number - 1 and chirality (0 none, 1 clockwise, 2 counterclockwise;
    none for any other kind, which the networks do not know). `edge_attr` `[E, 2]` holds the
    type of a bond (0 single, 1 double, 2 triple, 3 aromatic; single for any other, such as a dative
    one) and its direction (0 none, 1 up, 2 down, seen from left to right). Each bond is listed in
    both directions, one after the other. These are the inputs of the networks of Hu et al.,
    https://arxiv.org/abs/1905.12265.

    Args:
        name: as in `parse_smiles`.

    Returns:
        The graph, which is cached and must not be written to.

    Raises:
        SmilesError: as in `parse_smiles`.

    Example:
        >>> read_molecule("C=O").x.tolist(), read_molecule("C=O").edge_attr.tolist()
        ([[5, 0], [7, 0]], [[1, 0], [1, 0]])
    """
    molecule = parse_smiles(name)
    atoms = [
        (atom.GetAtomicNum() - 1, _CHIRALITY.get(atom.GetChiralTag(), 0))
        for atom in molecule.GetAtoms()
    ]
    edges, bonds = [], []
    for bond in molecule.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        kind = _BOND_TYPES.get(bond.GetBondType(), 0), _BOND_DIRECTIONS.get(bond.GetBondDir(), 0)
        edges += [(begin, end), (end, begin)]
        bonds += [kind, kind]
    return Data(
        x=torch.tensor(atoms),
        edge_index=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t().contiguous(),
        edge_attr=torch.tensor(bonds, dtype=torch.long).reshape(-1, 2),
    )


def _fault(smiles: str) -> str:
    """Return why a SMILES is invalid."""
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return "its syntax is wrong"
    problems = Chem.DetectChemistryProblems(molecule)
    return " ".join(problems[0].Message().split()) if problems else "it makes no sense"

"""Molecules drawn: shades where they belong, and bad input."""

import numpy as np
import pytest

pytest.importorskip("torch_geometric", exc_type=ImportError)
pytest.importorskip("rdkit", exc_type=ImportError)

from delta_transfer.data.molecules.drawing import SIDE, draw_molecule
from delta_transfer.data.molecules.smiles import SmilesError


def coloured(shades):
    """How many pixels are neither white nor grey, left and right of the middle."""
    image = np.asarray(draw_molecule("CCCCCC CAS 110-54-3", shades)).astype(int)
    assert image.shape == (SIDE, SIDE, 3)
    found = image.max(axis=2) - image.min(axis=2) > 30
    return found[:, : SIDE // 2].sum(), found[:, SIDE // 2 :].sum()


def test_an_atom_is_shaded_where_it_is_drawn():
    assert coloured([0.0] * 6) == (0, 0)
    first, last = coloured([1.0, 0, 0, 0, 0, 0]), coloured([0, 0, 0, 0, 0, 1.0])
    assert sorted([first[0] > 0, first[1] > 0]) == [False, True]
    assert [first[0] > 0, first[1] > 0] == [last[1] > 0, last[0] > 0]


def test_each_atom_needs_a_shade():
    with pytest.raises(ValueError, match="2 shades for 6 atoms"):
        draw_molecule("CCCCCC", [0.1, 0.2])


def test_an_invalid_smiles_is_not_drawn():
    with pytest.raises(SmilesError, match="C1CC"):
        draw_molecule("C1CC", [0.0] * 3)

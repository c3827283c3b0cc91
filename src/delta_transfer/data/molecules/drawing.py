"""Drawings of molecules with shaded atoms."""

import io
from collections.abc import Sequence

from PIL import Image
from rdkit.Chem.Draw import rdMolDraw2D

from delta_transfer.data.molecules.smiles import parse_smiles

SIDE = 320
"""Height and width of a drawing, in pixels."""

_COLOUR = (0.86, 0.36, 0.13)  # of the darkest atom


def draw_molecule(name: str, shades: Sequence[float]) -> Image.Image:
    """Draw a molecule as a square image on white.

    Args:
        name: its SMILES, and anything after a space.
        shades: of each atom, from 0 (white) to 1, in the order of the SMILES.

    Raises:
        SmilesError: if the SMILES is invalid.
        ValueError: if the numbers of shades and atoms differ.
    """
    molecule = parse_smiles(name)
    if len(shades) != molecule.GetNumAtoms():
        raise ValueError(f"got {len(shades)} shades for {molecule.GetNumAtoms()} atoms")
    colours = {
        atom: tuple(1 - min(1.0, max(0.0, shade)) * (1 - part) for part in _COLOUR)
        for atom, shade in enumerate(shades)
    }
    drawer = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer,
        molecule,
        highlightAtoms=list(colours),
        highlightAtomColors=colours,
        highlightBonds=[],
    )
    drawer.FinishDrawing()
    return Image.open(io.BytesIO(drawer.GetDrawingText())).convert("RGB")

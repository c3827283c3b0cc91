"""Molecules drawn, with their atoms shaded."""

import io
from collections.abc import Sequence

from PIL import Image
from rdkit.Chem.Draw import rdMolDraw2D

from delta_transfer.data.molecules.smiles import parse_smiles

SIDE = 320
COLOUR = (0.86, 0.36, 0.13)  # of the darkest atom


def draw_molecule(name: str, shades: Sequence[float]) -> Image.Image:
    """An image of a molecule, square, on white.

    Args:
        name: its SMILES, and whatever stands behind it.
        shades: from 0, white, to 1 for each atom, in the order of the SMILES.

    Raises:
        SmilesError: if there is no such molecule.
        ValueError: if there are not as many shades as atoms.
    """
    molecule = parse_smiles(name)
    if len(shades) != molecule.GetNumAtoms():
        raise ValueError(f"{molecule.GetNumAtoms()} atoms have {len(shades)} shades")
    colours = {
        atom: tuple(1 - min(1.0, max(0.0, shade)) * (1 - part) for part in COLOUR)
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

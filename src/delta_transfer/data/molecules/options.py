"""How a file of molecules is to be understood."""

from dataclasses import dataclass
from typing import Literal

SplitMethod = Literal["auto", "scaffold", "random"]


@dataclass(frozen=True, kw_only=True)
class MoleculeOptions:
    """What the user says of molecules.

    Attributes:
        smiles_column: of a CSV file of molecules; None for one of images.
        label_columns: their names with commas between; None for all others that hold numbers.
        split: how splits are drawn; auto is random for a data set of MoleculeNet that is published
            so, and scaffold for everything else.
    """

    smiles_column: str | None = None
    label_columns: str | None = None
    split: SplitMethod = "auto"


DEFAULT_MOLECULE_OPTIONS = MoleculeOptions()
"""As for data without molecules."""

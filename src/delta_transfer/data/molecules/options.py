"""Options of datasets of molecules."""

from dataclasses import dataclass
from typing import Literal

SplitMethod = Literal["auto", "scaffold", "random"]


@dataclass(frozen=True, kw_only=True)
class MoleculeOptions:
    """The columns of a CSV file of molecules, and the method to draw splits.

    Attributes:
        smiles_column: of a CSV file of molecules; None for one of images.
        label_columns: their names separated by commas; None for all others that have numbers.
        split: how splits are drawn; "auto" is "random" for a MoleculeNet dataset that is published
            so, and "scaffold" for everything else.
    """

    smiles_column: str | None = None
    label_columns: str | None = None
    split: SplitMethod = "auto"


DEFAULT_MOLECULE_OPTIONS = MoleculeOptions()
"""For data without molecules."""

"""`rdkit/nci`: about 4,900 molecules without labels in RDKit, for pretraining."""

from functools import cache
from pathlib import Path

from rdkit import RDConfig

from delta_transfer.data.molecules.smiles import SmilesError, read_molecule
from delta_transfer.errors import EnvironmentError

NAME = "rdkit/nci"

_FILE = "NCI/first_5K.smi"


@cache
def load_nci_smiles() -> tuple[str, ...]:
    """Return SMILES of the National Cancer Institute's open collection.

    Duplicates are left out, and the few that RDKit itself cannot read.

    Raises:
        EnvironmentError: if RDKit was installed without the file.
    """
    file = Path(RDConfig.RDDataDir, _FILE)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EnvironmentError(
            f"{NAME} is missing, as RDKit was installed without '{file}' ({error.strerror}): "
            "install it from PyPI, pip install rdkit"
        ) from error
    unique = dict.fromkeys(line.split()[0] for line in lines if line.strip())
    return tuple(smiles for smiles in unique if _is_readable(smiles))


def _is_readable(smiles: str) -> bool:
    try:
        read_molecule(smiles)
    except SmilesError:
        return False
    return True

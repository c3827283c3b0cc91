"""`rdkit/nci`: about 4,900 molecules that RDKit brings, without labels, to pretrain on."""

from functools import cache
from pathlib import Path

from rdkit import RDConfig

from delta_transfer.data.molecules.smiles import SmilesError, read_molecule
from delta_transfer.errors import UserError

NAME = "rdkit/nci"

_FILE = "NCI/first_5K.smi"


@cache
def load_nci_smiles() -> tuple[str, ...]:
    """The SMILES of the first molecules of the National Cancer Institute's open collection.

    Each is there once; the few that RDKit itself cannot read are left out.

    Raises:
        UserError: if RDKit was installed without them.
    """
    file = Path(RDConfig.RDDataDir, _FILE)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{NAME} is not there, as RDKit came without '{file}' ({error.strerror}): install it "
            "from PyPI, pip install rdkit"
        ) from error
    written = dict.fromkeys(line.split()[0] for line in lines if line.strip())
    return tuple(smiles for smiles in written if _is_readable(smiles))


def _is_readable(smiles: str) -> bool:
    try:
        read_molecule(smiles)
    except SmilesError:
        return False
    return True

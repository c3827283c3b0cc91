"""The graphs that a network is pretrained on: their labels are not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.config.commands import PretrainOptions
from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.molecules.smiles_files import SMILES_SUFFIXES, list_smiles_without_test
from delta_transfer.data.names import MOLECULENET, TU
from delta_transfer.data.registry import load_data
from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.optional import require_graph_libraries
from delta_transfer.utils.paths import user_path

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from torch_geometric.data import Data


NAMED_PREFIXES = (MOLECULENET, TU)
OFFLINE = "rdkit/nci"

_LEAST = 10  # graphs


@dataclass(frozen=True, kw_only=True, eq=False)
class UnlabelledGraphs:
    """Graphs to learn from.

    Args:
        graphs: those.
        spec: what is known of their nodes.
        notes: sentences worth telling the user.
    """

    graphs: "Sequence[Data]"
    spec: GraphSpec
    notes: tuple[str, ...]


def read_unlabelled(options: PretrainOptions) -> UnlabelledGraphs:
    """The graphs that the options name.

    Raises:
        UserError: if there is no such data, it is of images, or there are too few graphs in it.
    """
    _check(options)
    require_graph_libraries("pretrain")
    data = options.data
    graphs: list[Any]
    if data.startswith(NAMED_PREFIXES):
        task = load_data(
            data,
            seed=options.seed,
            data_root=options.data_root,
            molecule_options=MoleculeOptions(split=options.split),
        )
        graphs = [split.read(path) for split in (task.train, task.val) for path in split.paths]
        notes = [f"its training and validation splits, seed {options.seed}, without labels"]
    else:
        smiles, tested = _smiles(options)
        graphs, notes = _molecules(smiles, data)
        if tested:
            notes.append(f"{tested} rows of the split test are left out")
    if len(graphs) < _LEAST:
        raise UserError(
            f"{data}: there are only {len(graphs)} graphs to learn from: give at least {_LEAST}, "
            "and better thousands"
        )
    return UnlabelledGraphs(
        graphs=graphs, spec=GraphSpec.from_node_features(graphs[0].x), notes=tuple(notes)
    )


def _check(options: PretrainOptions) -> None:
    """Raises UserError where the data cannot be what is needed, or an option is of other data."""
    data, path = options.data, user_path(options.data)
    named = data == OFFLINE or data.startswith(NAMED_PREFIXES)
    ending = path.suffix.lower()
    if not named and not (path.is_file() and ending in (".csv", *SMILES_SUFFIXES)):
        what = "this is no file of molecules" if path.exists() else "there is no such file"
        raise UserError(
            f"{data}: {what}; give a file of SMILES (.csv, {', '.join(SMILES_SUFFIXES)}), "
            f"{OFFLINE}, "
            f"{' or '.join(f'{prefix}NAME' for prefix in NAMED_PREFIXES)}"
        )
    if options.smiles_column is not None and (named or ending != ".csv"):
        raise UserError(f"--smiles-column: {data} is no CSV file; leave the option out")
    if options.split != "auto" and not data.startswith(MOLECULENET):
        raise UserError(
            f"--split {options.split}: only {MOLECULENET}NAME is split so; leave the option out"
        )
    if options.data_root is not None and not data.startswith(NAMED_PREFIXES):
        raise UserError(
            f"--data-root: only {' and '.join(f'{prefix}NAME' for prefix in NAMED_PREFIXES)} look "
            "there; "
            "leave the option out"
        )


def _smiles(options: PretrainOptions) -> tuple[Sequence[str], int]:
    """Those of the molecules to learn from, and how many are left for a test."""
    if options.data == OFFLINE:
        from delta_transfer.data.molecules.nci import load_nci_smiles

        return load_nci_smiles(), 0
    return list_smiles_without_test(user_path(options.data), column=options.smiles_column)


def _molecules(smiles: Sequence[str], source: str) -> "tuple[list[Data], list[str]]":
    """The molecules, each once, and how many are left out because they are none."""
    from delta_transfer.data.molecules.smiles import SmilesError, read_molecule

    graphs, strange = [], []
    different = list(dict.fromkeys(smiles))
    for text in different:
        try:
            graphs.append(read_molecule(text))
        except SmilesError as error:
            strange.append(f"'{text}' ({error.reason})")
    notes = []
    if len(different) < len(smiles):
        notes.append(f"{len(smiles) - len(different)} are there again and count once")
    if strange:
        notes.append(f"{len(strange)} are no molecules and are left out: {first_few(strange)}")
    if strange and not graphs:
        raise UserError(
            f"{source}: there is no molecule in it ({first_few(strange)}): give SMILES, one at the "
            "beginning of each line, or in a column of a CSV file (--smiles-column)"
        )
    return graphs, notes

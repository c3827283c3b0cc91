"""The unlabelled graphs of a pretraining."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.config.commands import PretrainOptions
from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.molecules.smiles_files import SMILES_SUFFIXES, list_smiles_without_test
from delta_transfer.data.names import MOLECULENET, TU
from delta_transfer.data.registry import load_data
from delta_transfer.errors import ConfigError, DataError, first_few
from delta_transfer.utils.optional import require_graph_libraries
from delta_transfer.utils.paths import user_path

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from torch_geometric.data import Data


_NAMED_PREFIXES = (MOLECULENET, TU)
_OFFLINE = "rdkit/nci"

_MIN_GRAPHS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class UnlabelledGraphs:
    """Graphs for pretraining.

    Args:
        graphs: the graphs.
        spec: their node features.
        notes: messages for the user.
    """

    graphs: "Sequence[Data]"
    spec: GraphSpec
    notes: tuple[str, ...]


def read_unlabelled(options: PretrainOptions) -> UnlabelledGraphs:
    """Load the graphs of the options.

    Raises:
        UserError: if the data does not exist, has no graphs, or too few.
    """
    _check(options)
    require_graph_libraries("pretrain")
    data = options.data
    graphs: list[Any]
    if data.startswith(_NAMED_PREFIXES):
        task = load_data(
            data,
            seed=options.seed,
            data_root=options.data_root,
            molecule_options=MoleculeOptions(split=options.split),
        )
        graphs = [split.read(path) for split in (task.train, task.val) for path in split.paths]
        notes = [f"its training and validation splits, seed {options.seed}, without labels"]
    else:
        smiles, num_test_rows = _load_smiles(options)
        graphs, notes = _parse_molecules(smiles, data)
        if num_test_rows:
            notes.append(f"{num_test_rows} rows of the split test are left out")
    if len(graphs) < _MIN_GRAPHS:
        raise DataError(
            f"{data} has only {len(graphs)} graphs: use at least {_MIN_GRAPHS}, better thousands"
        )
    return UnlabelledGraphs(
        graphs=graphs, spec=GraphSpec.from_node_features(graphs[0].x), notes=tuple(notes)
    )


def _check(options: PretrainOptions) -> None:
    """Raise UserError if the data has no graphs, or an option does not apply to it."""
    data, path = options.data, user_path(options.data)
    named = data == _OFFLINE or data.startswith(_NAMED_PREFIXES)
    suffix = path.suffix.lower()
    names = [f"{prefix}NAME" for prefix in _NAMED_PREFIXES]
    if not named and not (path.is_file() and suffix in (".csv", *SMILES_SUFFIXES)):
        reason = "not a file of molecules" if path.exists() else "file not found"
        raise DataError(
            f"{data}: {reason}; use a file of SMILES (.csv, {', '.join(SMILES_SUFFIXES)}), "
            f"{_OFFLINE}, {' or '.join(names)}"
        )
    if options.smiles_column is not None and (named or suffix != ".csv"):
        raise ConfigError(
            f"`smiles_column={options.smiles_column}`: {data} is not a CSV file; leave the "
            "option out"
        )
    if options.split != "auto" and not data.startswith(MOLECULENET):
        raise ConfigError(
            f"`split={options.split}` is for {MOLECULENET}NAME only; leave the option out"
        )
    if options.data_root is not None and not data.startswith(_NAMED_PREFIXES):
        raise ConfigError(
            f"`data_root={options.data_root}` is for {' and '.join(names)} only; leave the "
            "option out"
        )


def _load_smiles(options: PretrainOptions) -> tuple[Sequence[str], int]:
    """Return the SMILES to train on, and the number of test rows left out."""
    if options.data == _OFFLINE:
        from delta_transfer.data.molecules.nci import load_nci_smiles

        return load_nci_smiles(), 0
    return list_smiles_without_test(user_path(options.data), column=options.smiles_column)


def _parse_molecules(smiles: Sequence[str], source: str) -> "tuple[list[Data], list[str]]":
    """Return the distinct molecules, and notes on duplicates and invalid SMILES."""
    from delta_transfer.data.molecules.smiles import SmilesError, read_molecule

    graphs, invalid = [], []
    distinct = list(dict.fromkeys(smiles))
    for text in distinct:
        try:
            graphs.append(read_molecule(text))
        except SmilesError as error:
            invalid.append(f"'{text}' ({error.reason})")
    notes = []
    if len(distinct) < len(smiles):
        notes.append(f"duplicates left out: {len(smiles) - len(distinct)}")
    if invalid:
        notes.append(f"invalid SMILES left out: {len(invalid)}, such as {first_few(invalid)}")
    if invalid and not graphs:
        raise DataError(
            f"{source} has no molecules ({first_few(invalid)}): use SMILES, one at the beginning "
            "of each line, or in a column of a CSV file (`smiles_column`)"
        )
    return graphs, notes

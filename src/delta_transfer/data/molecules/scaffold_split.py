"""Which molecules are for training, validation and testing: by their scaffolds, or at random."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

from delta_transfer.data.molecules.smiles import CACHE_SIZE, parse_smiles

_find_scaffold: Callable[..., str] = MurckoScaffoldSmiles  # which has no types


@lru_cache(maxsize=CACHE_SIZE)
def scaffold(name: str) -> str:
    """The Bemis-Murcko scaffold of a molecule with its chirality; "" of one without rings.

    Example:
        >>> scaffold("CCOc1ccccc1"), scaffold("CCO")
        ('c1ccccc1', '')
    """
    return _find_scaffold(mol=parse_smiles(name), includeChirality=True)


def scaffold_split(scaffolds: Sequence[str], fractions: Sequence[float]) -> list[list[int]]:
    """Parts of about these sizes, none of which shares a scaffold with another.

    As in Hu et al., https://arxiv.org/abs/1905.12265: groups of molecules with the same scaffold,
    the largest first and of equally large ones the last first, go into the first part that they do
    not overfill; what goes into none goes into the last.

    Args:
        scaffolds: of each molecule.
        fractions: of all molecules, of each part; they sum to 1.

    Returns:
        The positions of the molecules of each part, ascending.

    Example:
        >>> scaffold_split(["a", "b", "a", "c", "a"], [0.6, 0.2, 0.2])
        [[0, 2, 4], [3], [1]]
    """
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(scaffolds):
        groups.setdefault(name, []).append(position)
    limits = [sum(fractions[: i + 1]) * len(scaffolds) for i in range(len(fractions))]
    parts: list[list[int]] = [[] for _ in fractions]
    for group in sorted(groups.values(), key=lambda g: (len(g), g[0]), reverse=True):
        filled = np.cumsum([len(part) for part in parts]) + len(group)
        fitting = (part for part, n, most in zip(parts, filled, limits, strict=True) if n <= most)
        next(fitting, parts[-1]).extend(group)
    return [sorted(part) for part in parts]


def stratified_random_split(
    strata: Sequence[float], fractions: Sequence[float], *, seed: int
) -> list[list[int]]:
    """Parts of about these sizes, drawn at random, each with its share of every stratum.

    Args:
        strata: of each molecule, a number for its kind.
        fractions: as in `scaffold_split`; a part gets at least one of each kind where there are so
            many, the first one what is left.
        seed: the seed of this one draw (see `derive_seed`).

    Returns:
        As `scaffold_split`.
    """
    generator = np.random.default_rng(seed)
    array = np.asarray(strata)
    parts: list[list[int]] = [[] for _ in fractions]
    for kind in np.unique(array):
        members = generator.permutation(np.flatnonzero(array == kind)).tolist()
        total = len(members)
        for i, share in enumerate(fractions[1:] if total >= len(fractions) else (), start=1):
            reserved = len(fractions) - i  # one for each part that is still to come, and the first
            count = min(max(1, round(share * total)), len(members) - reserved)
            parts[i] += members[:count]
            del members[:count]
        parts[0] += members
    return [sorted(part) for part in parts]

"""Splits of molecules by their scaffolds, or at random."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

from delta_transfer.data.molecules.smiles import CACHE_SIZE, parse_smiles

_find_scaffold: Callable[..., str] = MurckoScaffoldSmiles  # which has no types


@lru_cache(maxsize=CACHE_SIZE)
def scaffold(name: str) -> str:
    """Return the Bemis-Murcko scaffold of a molecule, with chirality; "" without rings.

    Example:
        >>> scaffold("CCOc1ccccc1"), scaffold("CCO")
        ('c1ccccc1', '')
    """
    return _find_scaffold(mol=parse_smiles(name), includeChirality=True)


def scaffold_split(scaffolds: Sequence[str], fractions: Sequence[float]) -> list[list[int]]:
    """Split molecules into parts of about these sizes that share no scaffold.

    As in Hu et al., https://arxiv.org/abs/1905.12265: groups of molecules with the same scaffold,
    the largest first and among equal sizes the last first, go into the first part that they do not
    overfill, or else into the last one.

    Args:
        scaffolds: of each molecule.
        fractions: of all molecules, for each part; their sum is 1.

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
    """Split molecules at random into parts of about these sizes, stratified.

    Args:
        strata: the stratum of each molecule.
        fractions: as in `scaffold_split`; each part gets at least one molecule of every stratum
            that has enough, and the first one the rest.
        seed: the seed of this draw (see `derive_seed`).

    Returns:
        As `scaffold_split`.
    """
    generator = np.random.default_rng(seed)
    array = np.asarray(strata)
    parts: list[list[int]] = [[] for _ in fractions]
    for stratum in np.unique(array):
        members = generator.permutation(np.flatnonzero(array == stratum)).tolist()
        total = len(members)
        for i, fraction in enumerate(fractions[1:] if total >= len(fractions) else (), start=1):
            reserved = len(fractions) - i  # one for each later part, and for the first
            count = min(max(1, round(fraction * total)), len(members) - reserved)
            parts[i] += members[:count]
            del members[:count]
        parts[0] += members
    return [sorted(part) for part in parts]

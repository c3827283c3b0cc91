import random

import pytest

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

from delta_transfer.data.molecules.scaffold_split import (
    scaffold,
    scaffold_split,
    stratified_random_split,
)


def hu_et_al(scaffolds: list[str]) -> list[list[int]]:
    """Their split into 80/10/10, as they describe it: larger groups first."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(scaffolds):
        groups.setdefault(name, []).append(i)
    ordered = sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True)
    train: list[int] = []
    val: list[int] = []
    test: list[int] = []
    for group in ordered:
        if len(train) + len(group) > 0.8 * len(scaffolds):
            if len(train) + len(val) + len(group) > 0.9 * len(scaffolds):
                test += group
            else:
                val += group
        else:
            train += group
    return [sorted(train), sorted(val), sorted(test)]


@pytest.mark.parametrize("seed", range(20))
def test_scaffolds_as_hu_et_al(seed: int) -> None:
    draw = random.Random(seed)
    kinds = [str(draw.randrange(1 + draw.randrange(15))) for _ in range(draw.randrange(1, 90))]
    assert scaffold_split(kinds, (0.8, 0.1, 0.1)) == hu_et_al(kinds)


def test_two_parts() -> None:
    assert scaffold_split(list("aaabbbcd"), (0.5, 0.5)) == [[3, 4, 5, 7], [0, 1, 2, 6]]


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("CCO", ""),
        ("CC(C)Cc1ccc(cc1)C(C)C(=O)O", "c1ccccc1"),
        ("O=C1CCCCC1C", "O=C1CCCCC1"),
        ("c1ccccc1CCc1ccccc1", "c1ccc(CCc2ccccc2)cc1"),
        ("c1ccccc1 line 4", "c1ccccc1"),
    ],
)
def test_scaffold(smiles: str, expected: str) -> None:
    assert scaffold(smiles) == expected


def test_mirror_images_have_scaffolds_of_their_own() -> None:
    left, right = scaffold("O=C1[C@H]2CCCN2c2ccccc21"), scaffold("O=C1[C@@H]2CCCN2c2ccccc21")
    assert left != right
    assert left.replace("@", "") == right.replace("@", "")


class TestAtRandom:
    def test_sizes_and_no_overlap(self) -> None:
        parts = stratified_random_split([0.0] * 100, (0.8, 0.1, 0.1), seed=3)
        assert [len(part) for part in parts] == [80, 10, 10]
        assert sorted(i for part in parts for i in part) == list(range(100))
        assert all(part == sorted(part) for part in parts)

    def test_by_seed(self) -> None:
        draws = [stratified_random_split([0.0] * 50, (0.5, 0.5), seed=seed) for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]

    def test_each_kind_alike(self) -> None:
        kinds = [0.0] * 70 + [1.0] * 30
        parts = stratified_random_split(kinds, (0.7, 0.2, 0.1), seed=0)
        assert [sum(kinds[i] for i in part) for part in parts] == [21, 6, 3]

    def test_a_rare_kind_stays_with_the_first(self) -> None:
        first, *others = stratified_random_split([0.0, 1.0, 0.0, 0.0, 1.0], (0.4, 0.3, 0.3), seed=0)
        assert {1, 4} < set(first)
        assert [len(part) for part in others] == [1, 1]
        assert stratified_random_split([1.0], (0.4, 0.3, 0.3), seed=0) == [[0], [], []]

    def test_the_first_keeps_one(self) -> None:
        assert [
            len(part) for part in stratified_random_split([0.0] * 4, (0.04, 0.48, 0.48), seed=0)
        ] == [
            1,
            2,
            1,
        ]

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from delta_transfer.data import SOURCES, load_task
from delta_transfer.errors import UserError


def test_samples_per_class_are_drawn_after_validation(flat: Path) -> None:
    whole = load_task(str(flat), seed=0)
    few = load_task(str(flat), seed=0, samples_per_class=3)
    assert few.val == whole.val
    assert Counter(few.train.labels) == {0: 3, 1: 3}
    assert set(few.train.paths) < set(whole.train.paths)
    assert few.notes == (
        *whole.notes,
        "3 training pictures of every class, drawn by seed 0: 6 of 25",
    )


def test_a_seed_draws_the_samples(make_pictures) -> None:
    root = make_pictures(
        [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(9)]
    )
    drawn = [load_task(str(root), seed=seed, samples_per_class=3).train.paths for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_class_with_fewer_samples_is_named(flat: Path) -> None:
    with pytest.raises(UserError, match=r"--samples-per-class 9 .* class 'cat' has 8: lower"):
        load_task(str(flat), seed=0, samples_per_class=9)


def test_an_unknown_name_lists_the_names_and_the_layout() -> None:
    with pytest.raises(UserError, match="unknown data set 'skimage/patchs'") as caught:
        load_task("skimage/patchs", seed=0)
    for part in (*SOURCES, "no folder of this name", "{train,val,test}/<class>/*"):
        assert part in str(caught.value)


def test_an_empty_name_is_not_the_current_folder(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flat)
    with pytest.raises(UserError, match="unknown data set ''"):
        load_task("", seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_val_fraction_out_of_range(flat: Path, fraction: float) -> None:
    with pytest.raises(UserError, match=r"--val-fraction .*: must be above 0 and below 1"):
        load_task(str(flat), seed=0, val_fraction=fraction)


def test_other_options_out_of_range(flat: Path) -> None:
    with pytest.raises(UserError, match="--samples-per-class 0: must be at least 1"):
        load_task(str(flat), seed=0, samples_per_class=0)
    with pytest.raises(UserError, match="--seed -1: a seed must be 0 or more"):
        load_task(str(flat), seed=-1)


def test_importing_the_package_imports_no_data_library() -> None:
    program = (
        "import sys, delta_transfer.data; print({'skimage', 'sklearn', 'pooch'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.stdout.strip(), result.stderr) == ("set()", "")

"""What several processes cannot do together is refused, where it is done at all."""

import pytest

from delta_transfer import run_checks
from delta_transfer.errors import UserError
from tests.runs import tiny

ALONE = [
    {"accumulate": 2},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"lr": "find"},
    {"batch_norm": "train"},
]


@pytest.mark.parametrize("options", ALONE, ids=lambda options: next(iter(options)))
def test_what_only_training_looks_at_is_in_nobody_s_way_without_it(
    pictures, tmp_path, monkeypatch, options
):
    monkeypatch.setattr(run_checks, "processes", lambda: 2)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    trained = tiny(pictures, tmp_path, method="l2", **options)
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{name} {options[name.replace('-', '_')]}"):
        run_checks.for_several(trained)
    probed = tiny(pictures, tmp_path, method="probe", **options)
    assert run_checks.for_several(probed) == probed


def test_parts_of_a_step_mean_nothing_without_steps(pictures, tmp_path, caplog):
    run_checks.check(tiny(pictures, tmp_path, method="probe", accumulate=2))
    assert "--accumulate is ignored: it means nothing for method probe" in caplog.text

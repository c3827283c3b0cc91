import gc
import logging

import pytest
from torch.utils.data import DataLoader, Dataset

from delta_transfer.compare import Row
from delta_transfer.console import Formatter, message, print_table
from delta_transfer.errors import UserError
from delta_transfer.stats import summarize


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.INFO, "3 classes"),
        (logging.WARNING, "warning: 3 classes"),
        (logging.ERROR, "warning: 3 classes"),
    ],
)
def test_a_warning_says_that_it_is_one(level, line):
    record = logging.LogRecord("delta_transfer", level, "", 0, "%d classes", (3,), None)
    assert Formatter().format(record) == line


class Damaged(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise UserError("cannot read 'a.png': replace it")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_message_is_the_same_from_a_worker_process(monkeypatch, workers):
    # Torch waits so many seconds for the workers of a loader that was cut off.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = iter(DataLoader(Damaged(), num_workers=workers))
    with pytest.raises(UserError) as caught:
        next(batches)
    assert message(caught.value) == "cannot read 'a.png': replace it"
    del batches, caught
    gc.collect()


def test_the_table_is_in_percent_with_differences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    l2, delta = [0.50, 0.60], [0.70, 0.78]
    rows = [
        Row("l2", summarize(l2), None, 12.3),
        Row("delta", summarize(delta), summarize([0.20, 0.18]), 15.0),
        Row("probe", summarize([0.4]), summarize([-0.1]), 1.0),
    ]
    print_table(rows, seeds=2)
    lines = capsys.readouterr().out.splitlines()
    cells = {
        line.strip("│ ").split("│")[0].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in lines
        if line.startswith("│")
    }
    assert "2 seeds" in lines[0]
    assert cells["l2"] == ["55.0", "7.1", "", "", "12"]
    # Student's t with one degree of freedom: 12.706 * 0.01 around 0.19.
    assert cells["delta"] == ["74.0", "5.7", "+19.0", "+6.3 to +31.7", "15"]
    assert cells["probe"] == ["40.0", "-", "-10.0", "", "1"]

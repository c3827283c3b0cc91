from delta_transfer.cli.tables import print_attention, print_table
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.statistics import summarize
from delta_transfer.report.comparison.runs import MethodSummary
from delta_transfer.runs.attention_report import TapSummary


def method(
    name: str, accuracies: list[float], differences: list[float] | None, seconds: float
) -> MethodSummary:
    versus = None if differences is None else summarize(differences)
    return MethodSummary(
        method=name,
        metric=ACCURACY,
        score=summarize(accuracies),
        vs_baseline=versus,
        vs_probe=None,
        wall_time_s=seconds,
        peak_memory_mib=100 * seconds,
    )


def test_the_table_is_in_percent_with_differences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        method("l2", [0.50, 0.60], None, 12.3),
        method("delta", [0.70, 0.78], [0.20, 0.18], 15.0),
        method("probe", [0.4], [-0.1], 1.0),
    ]
    print_table(rows, title="In percent, 2 seeds", failed={"probe": 1, "lwf": 2})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "In percent, 2 seeds"
    cells = {line.split()[0]: line.split()[1:] for line in lines[3:] if line.strip()}
    assert cells["l2"] == "2 55.0 7.1 12 1230".split()
    # Student's t with one degree of freedom: 12.706 * 0.01 around 0.19.
    assert cells["delta"] == "2 74.0 5.7 +19.0 +6.3 to +31.7 15 1500".split()
    assert cells["probe"] == "1, 1 failed 40.0 - -10.0 1 100".split()
    assert cells["lwf"] == "2 failed".split()
    assert all(len(line) <= 80 for line in lines)


def test_the_table_of_attention_has_a_line_for_each_tap(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        TapSummary(
            tap="layer4.2.conv3",
            channels=2048,
            effective_channels=1985.25,
            entropy=0.9959,
            uncertainty=0.054,
            min_attention=0.812,
            max_attention=11.256,
            top=(1011, 45, 1320),
        ),
        TapSummary(
            tap="x",
            channels=1,
            effective_channels=1.0,
            entropy=1.0,
            uncertainty=None,
            min_attention=1.0,
            max_attention=1.0,
            top=(0,),
        ),
    ]
    print_attention(rows, title="Channel attention: exact")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Channel attention: exact"
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    numbers = "2048 1985.2 0.996 5% 0.81 11.26 1011 45 1320"
    assert cells["layer4.2.conv3"] == numbers.split()
    assert cells["x"] == "1 1.0 1.000 - 1.00 1.00 0".split()
    assert "uniform" in " ".join(lines)

"""A search over options of train: trials, their files, and resuming."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from delta_transfer.cli import main
from delta_transfer.cli.commands.search import lines, shown
from delta_transfer.config.search import SearchOptions
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.experiments.search.folder import (
    Outcome,
    clear,
    outcomes,
    trial_folder,
    unfinished_runs,
)
from delta_transfer.experiments.search.search import SearchResult, Trial, _Progress
from delta_transfer.experiments.search.space import Space, find_space, train_options
from delta_transfer.experiments.search.study import Study
from delta_transfer.experiments.search.trial import Listener, Pruned, try_out
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from tests.run_folders import model_bytes, tiny

METHOD = "delta"
TINY = (
    "--image-size=32",
    "--batch-size=8",
    "--num-workers=0",
    "--device=cpu",
    f"--method={METHOD}",
)
OF_RUNS = ("wall_time_s", "failure")  # what differs from time to time


def typed(images: Path, out: Path, *more: str) -> list[str]:
    own = ["--strength=1", "--epochs=1,2", "--jobs=1", "--num-threads=1", f"--out={out}"]
    return ["search", str(images), *TINY, *own, *more]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in OF_RUNS} for row in found]


def space_of(asked: SearchOptions, **options: Any) -> Space:
    config = TrainOptions(
        data="images", **{"method": METHOD, **train_options(asked), **options}
    ).resolve()
    return find_space(config, asked).with_data(taps=("a", "b", "c", "d"), epochs=12)


# ------------------------------------------------------------------------------- what is searched


def test_by_default_everything_is_searched_around_the_default():
    space = space_of(SearchOptions())
    assert space.names == ("strength", "lr", "epochs", "taps")
    assert space.auto
    assert space.strength == (0.01, 100)
    assert space.lr == (1e-4, 1e-2)
    assert space.epochs == (6, 12, 24)  # around the number for this many images
    assert space.taps == ("auto", "b,c,d", "c,d", "d")
    own = space.configure(space.default)
    assert own == TrainOptions(data="images", method=METHOD, strength=1, epochs=12).resolve()


@pytest.mark.parametrize(
    ("method", "names", "strength"),
    [
        ("l2", ("strength", "lr", "epochs"), (1e-4, 1)),  # weight decay
        ("ldifs", ("strength", "lr", "epochs", "taps"), (0.1, 1000)),
        ("stochnorm", ("strength", "lr", "epochs"), (0.1, 0.9)),  # a probability
        ("lwf", ("strength", "lr", "epochs"), (0.01, 100)),  # which compares no taps
    ],
)
def test_each_method_has_what_means_something_for_it(method, names, strength):
    space = space_of(SearchOptions(), method=method)
    assert (space.names, space.strength, space.auto) == (names, strength, False)
    default = space.configure(space.default)
    plain = TrainOptions(data="images", method=method, epochs=12).resolve()
    assert default == dataclasses.replace(plain, strength=default.strength)


def test_what_is_given_is_not_searched():
    asked = SearchOptions(strength="0.5", lr="find", epochs="3", taps="b,c")
    config = TrainOptions(data="images", **train_options(asked)).resolve()
    assert (config.strength, config.lr, config.epochs, config.taps) == (0.5, "find", 3, "b,c")
    with pytest.raises(UserError, match=r"nothing left to search.* leave one out"):
        find_space(config, asked)
    assert space_of(dataclasses.replace(asked, lr="search")).names == ("lr",)


def test_a_narrow_range_begins_with_what_is_nearest_to_the_default():
    asked = SearchOptions(strength="2:4", lr="1e-3:1e-2", epochs="3,25", taps="auto")
    space = space_of(asked, method="l2sp")
    assert space.default == {"strength_auto": False, "strength": 2, "lr": 1e-3, "epochs": 25}


def test_the_presets_decide_around_what():
    graphs = space_of(SearchOptions(), model="pyg/GIN", method="l2")
    assert (graphs.lr, graphs.epochs) == ((1e-4, 1e-2), (7, 15, 30))
    assert space_of(SearchOptions(), model="pyg/GIN").default["strength_auto"]
    official = space_of(SearchOptions(), preset="paper")
    assert official.names == ("strength", "lr", "taps")  # it has steps
    assert not official.auto  # which its batch norm does not allow
    assert official.strength == (1e-4, 1)
    with_epochs = space_of(SearchOptions(epochs="4,8"), preset="paper")
    config = with_epochs.configure(with_epochs.default)
    assert (config.epochs, config.steps) == (4, None)


def test_taps_of_a_file_of_attention_are_not_searched(finished):
    file = str(finished.folder / "attention.safetensors")
    space = space_of(SearchOptions(), method="delta_attention", attention=file)
    assert space.names == ("strength", "lr", "epochs")


# ------------------------------------------------------------------------------------- the study


def study(folder: Path, *, seed: int = 0, fingerprint: str = "x", **options: Any) -> Study:
    return Study(
        options.get("storage"),
        folder,
        space_of(SearchOptions()),
        seed=seed,
        fingerprint=fingerprint,
        new=options.get("new", False),
    )


def outcome_of(params: dict[str, Any]) -> Outcome:
    """A loss with one lowest place, and now and then a trial that fails."""
    loss = abs(params["lr"] - 1e-3) + params["epochs"] / 100 + params.get("strength", 1) / 1e3
    if params["taps"] == "d":
        return Outcome(state="failed", failure="it does")
    return Outcome(state="complete", loss=loss, losses={50: 2 * loss, 100: loss})


def tried(folder: Path, count: int, *, again: bool, seed: int = 0) -> list[dict[str, Any]]:
    folder.mkdir()
    found, own = [], study(folder, seed=seed)
    for _ in range(count):
        own = study(folder, seed=seed) if again else own
        number, params = own.ask()
        if again:  # interrupted while it runs, and in other ways before
            own._study.ask()
            own = study(folder, seed=seed)
            assert own.waits
            assert own.ask() == (number, params)
        own.tell(number, outcome_of(params))
        found.append(params)
    return found


@pytest.mark.slow
def test_what_is_tried_is_a_function_of_the_seed_however_often_it_is_broken_off(tmp_path):
    whole = tried(tmp_path / "whole", 14, again=False)
    assert whole[0] == space_of(SearchOptions()).default
    assert tried(tmp_path / "broken", 14, again=True) == whole
    assert tried(tmp_path / "other", 3, again=False, seed=1)[1:] != whole[1:3]
    assert sum(study(tmp_path / "whole").importances().values()) == pytest.approx(1)


def test_a_trial_that_was_interrupted_while_it_was_drawn_is_drawn_to_its_end(tmp_path):
    own = study(tmp_path)
    first = own.ask()
    own._study.ask()  # nothing is drawn
    own = study(tmp_path)
    assert own.ask() == first == (0, space_of(SearchOptions()).default)
    number, params = own.ask()
    assert number == 1
    assert {"lr", "epochs", "taps"} <= set(params)
    assert own.params == {0: first[1], 1: params}


def test_a_default_that_was_interrupted_while_it_was_drawn_stays_the_first(tmp_path):
    study(tmp_path)
    study(tmp_path)._study.ask()  # nothing is drawn
    assert study(tmp_path).ask() == (0, space_of(SearchOptions()).default)


def test_a_trial_that_ended_just_before_a_kill_is_not_made_again(tmp_path):
    study(tmp_path).ask()
    wrote(tmp_path, {50: 1.0}, numbers=[0])
    progress = _Progress(
        tmp_path, space_of(SearchOptions()), study(tmp_path), limit=2, end=None, at_once=1
    )
    assert [trial.number for trial in progress.trials] == [0]
    config = progress.take()
    assert config is not None
    assert config.out == str(trial_folder(tmp_path, 1))
    assert progress.take() is None
    assert study(tmp_path).ask()[0] == 1  # the first is known to have ended


def test_trials_on_other_images_are_refused(tmp_path):
    study(tmp_path).ask()
    with pytest.raises(UserError, match=r"other images, splits or pretrained weights.* `overwri"):
        study(tmp_path, fingerprint="y")


def test_another_database_holds_the_trials_and_forgets_those_of_an_old_search(tmp_path):
    address = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    study(tmp_path, storage=address).ask()
    assert not (tmp_path / "search.db").exists()
    assert len(study(tmp_path, storage=address).params) == 1
    assert study(tmp_path, storage=address, new=True, fingerprint="y").params == {}


# ------------------------------------------------------------------------------------- its trials


def wrote(folder: Path, losses: dict[int, float], numbers: Iterable[int] = range(1, 6)) -> None:
    """Write the outcomes of trials that were complete."""
    for number in numbers:
        own = trial_folder(folder, number)
        own.mkdir(parents=True)
        Outcome(state="complete", loss=min(losses.values()), losses=losses).save(own)


def listening(folder: Path, number: int, **options: Any) -> Callable[[int, float], None]:
    own = trial_folder(folder, number)
    own.mkdir(parents=True, exist_ok=True)
    given = {"prune": True, "alone": True, **options}

    def hear(epoch: int, loss: float) -> None:
        Listener(own, **given).hear(own, epoch, 4, loss)  # a new one, as after a kill

    return hear


def test_a_trial_above_the_median_at_the_same_share_ends(tmp_path):
    wrote(tmp_path, {20: 0.9, 25: 0.9, 50: 0.8, 75: 0.7, 100: 0.6})
    good, bad = listening(tmp_path, 8), listening(tmp_path, 9)
    for epoch, loss in enumerate((0.95, 0.75, 0.65, 0.9), start=1):
        good(epoch, loss)
    bad(1, 5.0)  # in the first third none ends
    with pytest.raises(Pruned, match=r"loss 0.850 after 50% of the training"):
        bad(2, 0.85)


def test_none_ends_before_five_have_nor_in_the_last_epoch_nor_if_it_is_the_default(tmp_path):
    wrote(tmp_path / "few", {50: 0.1, 100: 0.1}, numbers=range(1, 5))
    listening(tmp_path / "few", 9)(2, 5.0)
    wrote(tmp_path / "many", {50: 0.1, 100: 0.1})
    listening(tmp_path / "many", 7)(4, 5.0)
    with pytest.raises(Pruned):
        listening(tmp_path / "many", 8, alone=False)(4, 5.0)  # another training comes after it
    listening(tmp_path / "many", 9, prune=False)(2, 5.0)


def test_losses_of_other_trainings_and_no_numbers_count_for_nothing(tmp_path):
    wrote(tmp_path, {50: 0.1, 100: 0.1})
    own = trial_folder(tmp_path, 9)
    own.mkdir()
    listener = Listener(own, prune=True, alone=False)
    listener.hear(own / "strength-0.1", 2, 4, 5.0)
    listener.hear(own, 2, 4, float("nan"))
    assert list(listener.losses) == [50]


@pytest.fixture(scope="module")
def prepared(images: Path) -> RunSetup:
    return prepare(tiny(images, Path("nowhere"), method="l2sp"))


@pytest.mark.parametrize(
    ("lr", "state"), [(1e-9, "pruned"), (1e6, "failed")], ids=["pruned", "failed"]
)
def test_a_bad_trial_leaves_little(images, prepared, tmp_path, lr, state):
    wrote(tmp_path, {50: 0.01, 100: 0.01})
    own = trial_folder(tmp_path, 9)
    config = tiny(images, own, method="l2sp", lr=lr, epochs=4, resume=True)
    try_out(prepared, config, time.perf_counter())
    outcome = outcomes(tmp_path)[9]
    assert outcome.state == state
    if state == "pruned":
        assert list(outcome.losses) == [25, 50]
        with (own / "metrics.csv").open(newline="") as file:
            read = [row for row in csv.DictReader(file) if row["val_calibrated_loss"]]
        of_epochs = {25 * float(r["epoch"]): float(r["val_calibrated_loss"]) for r in read[1:]}
        assert of_epochs == pytest.approx(outcome.losses)
    else:
        assert "training diverged in epoch 1" in outcome.failure
    kept = {"config.yaml", "train.log", "metrics.csv", "drift.csv", "outcome.json"}
    assert {path.name for path in own.iterdir()} <= kept


def test_a_finished_trial_keeps_nothing_that_only_resuming_needs(tmp_path):
    for name in ("usage.json", "losses.json", "checkpoints/last.ckpt", "folds/1/usage.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "outcome.json").touch()
    clear(tmp_path)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"outcome.json"}


def test_a_damaged_outcome_is_named(tmp_path):
    wrote(tmp_path, {50: 0.1}, numbers=[1])
    (trial_folder(tmp_path, 1) / "outcome.json").write_text("{}")
    with pytest.raises(UserError, match=r"1/outcome.json is not the outcome.* delete the folder"):
        outcomes(tmp_path)


def test_a_whole_run_of_what_was_the_best_gives_way(tmp_path):
    config = TrainOptions(data="x", out=str(tmp_path / "best"), lr=1e-3, resume=True).resolve()
    (tmp_path / "best").mkdir()
    assert unfinished_runs([config]) == [config]
    (tmp_path / "best" / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "best" / "result.json").touch()
    assert unfinished_runs([config]) == []
    (found,) = unfinished_runs([dataclasses.replace(config, lr=2e-3)])
    assert (found.overwrite, found.resume, found.lr) == (True, False, 2e-3)


# ----------------------------------------------------------------------------------- what is said


def searched(folder: Path, losses: list[float], result: RunResult) -> SearchResult:
    trials = [
        Trial(
            number=number,
            options={"lr": 1e-3},
            outcome=Outcome(state="complete", loss=loss, score=0.5),
        )
        for number, loss in enumerate(losses)
    ]
    lost = Trial(number=len(losses), options={"lr": 1.0}, outcome=Outcome(state="pruned"))
    names = ("best",) if losses[0] == min(losses) else ("default", "best")
    return SearchResult(
        folder=folder,
        trials=[*trials, lost],
        names=("lr",),
        importances={"strength_auto": 0.25, "lr": 0.6, "strength": 0.15},
        runs=dict.fromkeys(names, result),
    )


def test_the_default_is_shown_beside_the_best(finished, tmp_path):
    found = searched(tmp_path, [0.9, *(0.5 + n / 100 for n in range(12))], finished)
    assert [trial.number for trial in shown(found)] == [*range(1, 11), 0]
    said = "\n".join(lines(found))
    assert "best       trial 1 of 14 trials, 1 pruned or failed\n" in said
    assert "loss 0.5000, accuracy 50.0%; default: loss 0.9000, accuracy 50.0%" in said
    assert "optimistic, because the trial was selected by it" in said
    assert "(not used for selection)" in said
    assert "importance lr 60%, strength 40%" in said


def test_a_default_that_nothing_beats_is_said_to_be_so(finished, tmp_path):
    said = "\n".join(lines(searched(tmp_path, [0.5, 0.5], finished)))
    assert "the default configuration is the best: loss 0.5000, accuracy 50.0%" in said
    assert "optimistic" not in said


# ---------------------------------------------------------------------------------- the whole way


@pytest.fixture(scope="module")
def out(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two trials, and then of three."""
    folder = tmp_path_factory.mktemp("search") / "out"
    for count in (2, 3):
        assert main.main(typed(images, folder, f"--trials={count}")) == 0
    return folder


def test_it_leaves_its_trials_and_whole_runs_of_the_default_and_the_best(out):
    found = rows(out)
    assert [row["trial"] for row in found] == ["0", "1", "2"]
    assert {row["state"] for row in found} == {"complete"}
    losses = [float(row["val_calibrated_loss"]) for row in found]
    best = losses.index(min(losses))
    options = TrainConfig.load(out / "best.yaml")
    assert (options.out, options.lr) == (None, float(found[best]["lr"]))
    for name, number in (("best", best), ("default", 0)):
        if name == "best" or best:
            of_trial = (trial_folder(out, number) / "metrics.csv").read_bytes()
            assert (out / name / "metrics.csv").read_bytes() == of_trial
            result = RunResult.load(out / name)
            assert result.val_accuracy == pytest.approx(float(found[number]["val_accuracy"]))
    for number in range(3):
        own = trial_folder(out, number)
        assert "test" not in json.loads((own / "outcome.json").read_text())
        assert not list(own.glob("**/*.ckpt"))
        assert not (own / "model").exists()


def test_the_options_of_the_best_give_the_same_run(out, tmp_path):
    torch.set_num_threads(1)
    assert main.main(["train", "-c", str(out / "best.yaml"), f"--out={tmp_path / 'again'}"]) == 0
    assert model_bytes(tmp_path / "again") == model_bytes(out / "best")


def test_the_same_command_makes_nothing_again_and_its_table_is_shown(capsys, images, out):
    before = {p: p.stat().st_mtime_ns for p in out.glob("**/*.json")}
    assert main.main(typed(images, out, "--trials=3")) == 0
    said = capsys.readouterr()
    assert {p: p.stat().st_mtime_ns for p in out.glob("**/*.json")} == before
    assert "trials: 3, 3 finished already" in said.err
    for part in ("default", "best       trial", "test       accuracy", "best.yaml", "trials.csv"):
        assert part in said.out


def test_its_options_are_a_file_that_it_takes(images, out, capsys):
    shared = yaml.safe_load((out / "search.yaml").read_text())
    assert (shared["epochs"], shared["lr"], shared["num_threads"]) == ("1,2", "search", 1)
    command = ["search", "-c", str(out / "search.yaml"), "--trials=3", "--jobs=1", f"--out={out}"]
    assert main.main([*command, "--num-workers=0", "--device=cpu"]) == 0
    assert main.main([*command, "--epochs=3,4"]) == 2
    said = capsys.readouterr().err
    assert "contains a search with other options: --epochs was 1,2 and is 3,4" in said


def test_it_may_be_replaced_but_not_with_something_of_the_users(capsys, images, out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    (copy / "trials" / "1" / "thesis.tex").touch()
    train = ["train", str(images), "--overwrite", f"--out={copy}", "--method=probe", *TINY[:4]]
    assert main.main(train) == 2
    assert "do not belong to a run (trials/1/thesis.tex)" in capsys.readouterr().err
    (copy / "trials" / "1" / "thesis.tex").unlink()
    (copy / "search.db").unlink()
    assert main.main(typed(images, copy)) == 2
    assert "has trials, but no search.db" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- slow ones


def wait_for(condition: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)


def epochs_of(out: Path, number: int) -> int:
    file = trial_folder(out, number) / "metrics.csv"
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


LONG = ("--strength=search", "--epochs=4,6", "--checkpoint-steps=1", "--trials=3")


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "delta_transfer", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_broken_off_it_goes_on_to_the_same_trials(images, tmp_path, stop):
    command = typed(images, tmp_path / "out", *LONG)
    started = start(command)
    wait_for(lambda: epochs_of(tmp_path / "out", 1) > 4, started)
    os.kill(started.pid, stop)
    _, said = started.communicate(timeout=200)
    if stop == signal.SIGINT:
        assert "interrupted after 1 trial: to resume, rerun the command with --out" in said
    assert not (trial_folder(tmp_path / "out", 1) / "outcome.json").exists()
    assert main.main(command) == 0
    log = (trial_folder(tmp_path / "out", 1) / "train.log").read_text()
    assert "resuming in epoch" in log
    assert main.main(typed(images, tmp_path / "whole", *LONG)) == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert model_bytes(tmp_path / "out" / "best") == model_bytes(tmp_path / "whole" / "best")


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--jobs=2"], ["--jobs=2", "--ray=local"]], ids=["jobs", "ray"])
def test_several_trials_at_a_time(images, tmp_path, how):
    out = tmp_path / "out"
    command = [*typed(images, out, "--trials=4", "--strength=search"), *how]
    done = subprocess.run(
        [sys.executable, "-m", "delta_transfer", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 in parallel" in done.stderr
    found = rows(out)
    assert [row["trial"] for row in found] == ["0", "1", "2", "3"]
    assert (out / "best" / "report.html").is_file()
    # Each is what this process makes of the same options.
    for row in found[:2]:
        own = trial_folder(out, int(row["trial"]))
        config = TrainConfig.load(own / "config.yaml")
        again = trial_folder(tmp_path / "again", int(row["trial"]))
        config = dataclasses.replace(config, out=str(again), resume=True)
        try_out(prepare(config), config, time.perf_counter())
        assert Outcome.load(again).loss == float(row["val_calibrated_loss"])


@pytest.mark.slow
def test_minutes_begin_no_trial_after_them_but_the_first(images, tmp_path, capsys):
    command = typed(images, tmp_path / "out", "--minutes=1e-9", "--method=l2sp", "--epochs=1")
    assert main.main(command) == 0
    assert [row["trial"] for row in rows(tmp_path / "out")] == ["0"]
    assert "trials: until the time is up" in capsys.readouterr().err


def test_a_default_that_fails_ends_it_and_is_tried_again(images, tmp_path, capsys):
    command = typed(images, tmp_path / "out", "--method=l2sp", "--lr=1e6")
    assert main.main(command) == 2
    said = capsys.readouterr().err
    assert "the first trial, the default, failed: training diverged" in said
    assert not list((tmp_path / "out" / "trials").iterdir())

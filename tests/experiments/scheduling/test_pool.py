import dataclasses
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.experiments.scheduling import pool as module
from delta_transfer.experiments.scheduling.pool import (
    Pool,
    Worker,
    _inherited,
    choose,
    gpus,
    local_workers,
)
from delta_transfer.experiments.scheduling.worker import Reply, _portable, make_run
from delta_transfer.metrics.run_result import RunResult
from tests.run_folders import model_bytes


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two processes."""
    with Pool(local_workers(["l2"], count=2, threads=1, gpus=[])) as found:
        processes = [worker.process for worker in found._workers]
        yield found
    assert not any(process.is_alive() for process in processes)


def options(compared: list[RunResult], out: Path) -> list[TrainConfig]:
    """Those of the runs of l2, for other folders."""
    own = [run for run in compared if run.method == "l2"]
    configs = [TrainConfig.load(run.folder / "config.yaml") for run in own]
    return [dataclasses.replace(c, out=str(out / f"l2-seed{c.seed}")) for c in configs]


class TestProcesses:
    """In this order: the last one ends a process."""

    def test_what_is_wrong_with_data_or_network_is_said_here(self, pool, compared, tmp_path):
        config, _ = options(compared, tmp_path)
        with pytest.raises(UserError, match=r"unknown tap 'blocks\.9'"):
            pool.prepare(dataclasses.replace(config, taps="blocks.9"))

    def test_runs_are_those_that_one_process_makes(self, pool, compared, tmp_path, capfd):
        configs = options(compared, tmp_path)
        prepared = pool.prepare(configs[1])
        assert prepared.description[0].startswith("data     train: 3 classes")
        found = {run.seed: reply for run, reply in pool.run(configs)}
        for run in (run for run in compared if run.method == "l2"):
            reply = found[run.seed]
            assert reply.failure == ""
            folder = tmp_path / f"l2-seed{run.seed}"
            assert model_bytes(folder) == model_bytes(run.folder)
            own = RunResult.load(folder)
            assert reply.result == own
            ours = dataclasses.replace(own, folder=run.folder, wall_time_s=0, peak_memory_mib=0)
            assert ours == dataclasses.replace(run, wall_time_s=0, peak_memory_mib=0)
            assert "test accuracy" in (folder / "train.log").read_text()
        said = capfd.readouterr()
        assert (said.out, said.err) == ("", "")  # it is in the logs of the runs

    def test_a_failed_run_is_not_an_error_and_other_errors_have_their_traceback(
        self, pool, compared, tmp_path
    ):
        config, _ = options(compared, tmp_path)
        (tmp_path / "file").touch()
        below = dataclasses.replace(config, out=str(tmp_path / "file" / "run"))
        ((_, reply),) = pool.run([below])
        assert reply.result is None
        assert "cannot be written" in reply.failure
        nowhere = dataclasses.replace(config, out="\0")
        with pytest.raises(ValueError, match="null byte") as error:
            list(pool.run([nowhere]))
        assert "train_prepared" in "".join(error.value.__notes__)

    def test_a_process_that_dies_is_told_of(self, pool, compared, tmp_path):
        pool._workers[0].process.kill()
        with pytest.raises(UserError, match=r"died \(exit code -9\).*`jobs=1`"):
            pool.prepare(options(compared, tmp_path)[0])


class TestChoose:
    """Little is prepared twice."""

    RUNS = tuple(
        TrainOptions(data="x", method=method, seed=seed, samples_per_class=size).resolve()
        for size in (5, None)
        for seed in (0, 1)
        for method in ("l2", "delta", "probe")[: 2 + seed]
    )

    def place(self, run: TrainConfig) -> tuple[str, int, int | None]:
        return run.method, run.seed, run.samples_per_class

    def test_first_what_the_worker_has_prepared(self):
        assert self.place(choose(self.RUNS, own=(1, 5), others=set())) == ("l2", 1, 5)

    def test_then_what_nobody_has(self):
        found = choose(self.RUNS, own=None, others={(0, 5), (1, 5)})
        assert self.place(found) == ("l2", 0, None)
        found = choose(self.RUNS, own=(7, 5), others=set())
        assert self.place(found) == ("l2", 0, 5)

    def test_then_of_what_most_is_left(self):
        left = [run for run in self.RUNS if run.samples_per_class == 5]
        assert self.place(choose(left, own=None, others={(0, 5), (1, 5)})) == ("l2", 1, 5)


def test_gpus_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7a,3")
    assert gpus() == ["GPU-7a", "3"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    made = []

    class Process:
        def __init__(self, methods: object, threads: int, gpu: str | None) -> None:
            made.append((threads, gpu))

        def close(self) -> None:
            made.append("closed")

    monkeypatch.setattr(module, "_Separate", Process)
    with Pool(local_workers(["l2"], count=3, threads=4, gpus=["2", "5"])):
        assert made == [(4, "2"), (4, "5"), (4, "2")]
    assert made[3:] == ["closed"] * 3


class Slow(Worker):
    """Finishes each run when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Future[Reply | Exception]] = []
        self.closed = False

    def submit(self, config: TrainConfig, work: object) -> Future[Reply | Exception]:
        self.asked.append(Future())
        return self.asked[-1]

    def explain(self, error: Exception) -> Exception:
        return UserError(f"it {error}")

    def stop(self) -> None:
        self.asked[-1].set_exception(KeyboardInterrupt())

    def close(self) -> None:
        self.closed = True


def test_runs_are_handed_out_as_they_finish_and_the_next_when_that_was_dealt_with():
    first, second = Slow(), Slow()
    waiting = [TrainOptions(data="x", seed=seed).resolve() for seed in range(4)]
    with Pool([first, second]) as pool:
        found = pool.work_on(lambda: waiting.pop(0) if waiting else None, make_run)
        later = threading.Timer(0.1, lambda: second.asked[0].set_result(Reply()))
        later.start()
        assert next(found)[0].seed == 1
        assert [config.seed for config in waiting] == [2, 3]
        later = threading.Timer(0.1, lambda: first.asked[0].set_exception(OSError("broke")))
        later.start()
        with pytest.raises(UserError, match="it broke"):
            next(found)
        assert [config.seed for config in waiting] == [3]
        second.asked[1].set_result(Reply())
    assert first.closed
    assert second.closed


def test_leaving_lets_runs_save_and_says_so(caplog):
    worker = Slow()

    def interrupt() -> TrainConfig | None:
        if worker.asked:
            raise KeyboardInterrupt  # while the first one runs
        return TrainOptions(data="x").resolve()

    with pytest.raises(KeyboardInterrupt), Pool([worker, Slow()]) as pool:
        list(pool.work_on(interrupt, make_run))
    assert "stopping the runs after their step, and saving" in caplog.text
    assert worker.closed


def test_workers_that_started_are_ended_if_another_cannot_start():
    worker = Slow()

    def start() -> Iterator[Worker]:
        yield worker
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Pool(start()):
        pass
    assert worker.closed


def test_what_a_process_inherits_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with _inherited(5, "1"):
        assert os.environ["OMP_NUM_THREADS"] == "5"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_an_error_that_cannot_be_sent_is_sent_as_text():
    class Strange(Exception):
        def __init__(self) -> None:
            super().__init__("strange", sys.stdout)

    try:
        raise Strange
    except Strange as error:
        sent = _portable(error)
    assert type(sent) is RuntimeError
    assert "Strange" in str(sent)

"""What many tests share: one thread, a folder of tiny images, one run and one comparison."""

import hashlib
import os
import random
import signal
from collections.abc import Generator, Iterator

# Before torch is imported, and for the processes that tests start: on tiny tensors several threads
# only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _pytest.doctest import DoctestModule

from delta_transfer.metrics.run_result import RunResult
from tests.run_folders import flags, tiny, write_images

METHODS = ("probe", "l2", "l2sp", "delta")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Tests are not looked through for examples, where one that cannot be imported is left out."""
    found = yield
    return [collector for collector in found if not isinstance(collector, DoctestModule)]


def _seed() -> None:
    """What draws without a seed of its own draws the same in each run, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of what runs leave for other runs: never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DELTA_TRANSFER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def kept_probes() -> Iterator[None]:
    """Runs on the same features and labels share one fit of the linear probe: most of their time.

    The function is deterministic, and its own tests call it by another name.
    """
    from delta_transfer.features.probe import LinearProbe, fit_probe
    from delta_transfer.runs.preparation import prepared

    known: dict[bytes, LinearProbe] = {}

    def fit(features: torch.Tensor, targets: torch.Tensor, **options: Any) -> LinearProbe:
        loss = options["loss"].__self__
        given = features.shape, targets.dtype, loss, {**options, "loss": None}
        key = hashlib.sha256(repr(given).encode())
        for tensor in (features, targets):
            key.update(tensor.contiguous().numpy().tobytes())
        if key.digest() not in known:
            known[key.digest()] = fit_probe(features, targets, **options)
        return known[key.digest()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "fit_probe", fit)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, val and test; its `train` is a flat folder. Not to be written to."""
    return write_images(tmp_path_factory.mktemp("data") / "patterns")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Inside, Ctrl-C is heard, to which a program is deaf that a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path) -> RunResult:
    """What the command `train` left behind, with the method delta. Not to be written to."""
    from delta_transfer.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "finished"
    assert (
        main(["train", str(images), f"--out={out}", *flags(epochs=3, method="delta_attention")])
        == 0
    )
    return RunResult.load(out)


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory, images: Path) -> list[RunResult]:
    """Every method with two seeds, on splits that the seed draws. Not to be written to."""
    from delta_transfer.experiments.comparison.compare import compare

    out = tmp_path_factory.mktemp("runs") / "compared"
    options = {"test_split": "0.25", "val_fraction": 0.25, "folds": 0}
    config = tiny(images / "train", out, epochs=1, strength="auto", **options)
    return compare(config, out, methods=METHODS, seeds=[0, 1], n_jobs=1).results

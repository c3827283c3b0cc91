"""A fit that was broken off goes on to the very weights that it would have had."""

import dataclasses
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from delta_transfer.data.samplers import EpochSampler
from delta_transfer.methods import Delta
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.callbacks import MeasureDrift, ReinitializeHead
from delta_transfer.training.checkpoint_callbacks import CheckpointInterval
from delta_transfer.training.checkpoints import (
    AtomicCheckpointIO,
    find_last_checkpoint,
    read_checkpoint,
    rotate_checkpoints,
)
from delta_transfer.training.fit import fit
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.optimizers import OptimizerConfig
from delta_transfer.training.signals import stop_fits
from delta_transfer.training.trainer import FitConfig
from tests.networks import conv_net
from tests.training.test_fit import Samples

pytestmark = pytest.mark.usefixtures("ctrl_c")
EPOCHS, STEPS = 3, 3  # steps of an epoch, the last of which has two samples only
EVERY = CheckpointInterval(steps=1, minutes=60)


class BreakOff(lightning.Callback):
    """Ends a fit as abruptly as a process can be ended from within, before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            raise RuntimeError("broken off")


class Signal(lightning.Callback):
    """Sends this process a signal in a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def trained(
    folder: Path,
    *more: lightning.Callback,
    resume: bool = False,
    saving: CheckpointInterval = EVERY,
    validates: bool = True,
    workers: int = 0,
    labels: Sequence[int] | None = None,
    epochs: int = EPOCHS,
    mixing: Mixing | None = None,
    scarce: bool = False,
    fitting: Mapping[str, Any] = MappingProxyType({}),
    optimizing: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """With everything that has a state: Adam, dropout, batch norm, and a head that is redrawn."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    np.random.seed(5)
    network, source, data = conv_net(), conv_net().eval(), Samples(14)
    regularizer = Regularizer(
        network, source, [Delta(strength=0.1, taps=["conv2"])], batch_norm="train"
    )
    regularizer.calibrate([(data.inputs,)])
    generator = torch.Generator().manual_seed(3)
    drift = MeasureDrift(
        network, source, taps=["conv2"], inputs=data.inputs, path=folder / "drift.csv"
    )
    redraw = ReinitializeHead(network.fc, num_cycles=2, generator=generator)
    what = FitConfig(
        train_dataloader=DataLoader(
            data,
            batch_size=6,
            sampler=EpochSampler(14, seed=0, labels=labels),
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        ),
        val_dataloader=DataLoader(Samples(), batch_size=5) if validates else None,
        epochs=epochs,
        folder=folder,
        checkpoint_interval=saving,
        resume=resume,
        mixing=mixing,
        accelerator="cpu",
        **fitting,
    )
    if scarce:
        network.fc.register_forward_hook(run_out)
    fit(
        network,
        regularizer,
        what,
        loss=torch.nn.functional.cross_entropy,
        head="fc",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(
            optimizer="adamw",
            lr=0.01,
            head_lr=0.05,
            weight_decay=0.01,
            schedule="cosine",
            warmup_ratio=0.15,
            num_head_cycles=2,
            **optimizing,
        ),
        callbacks=[redraw, *([drift] if validates else []), *more],
        generators=[generator],
    )
    return network.state_dict()


def run_out(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """There is memory for four samples, with gradients."""
    if torch.is_grad_enabled() and len(output) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def traces(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("metrics.csv", "drift.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return trained(folder), folder


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS))
def test_broken_off_before_any_step_it_ends_as_if_it_had_not_been(whole, tmp_path, step, every):
    folder, saving = tmp_path / "run", CheckpointInterval(steps=every, minutes=60)
    with pytest.raises(RuntimeError, match="broken off"):
        trained(folder, BreakOff(step), saving=saving)
    assert same(trained(folder, resume=True, saving=saving), whole[0])
    assert traces(folder) == traces(whole[1])


def test_it_may_be_broken_off_again_and_again(whole, tmp_path):
    folder = tmp_path / "run"
    for step in range(1, EPOCHS * STEPS):
        with pytest.raises(RuntimeError, match="broken off"):
            trained(folder, BreakOff(step), resume=True)
    assert same(trained(folder, resume=True), whole[0])
    assert traces(folder) == traces(whole[1])


def test_it_goes_on_with_processes_that_load(whole, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="broken off"):
        trained(folder, BreakOff(4), workers=2)
    assert same(trained(folder, resume=True, workers=2), whole[0])


@pytest.mark.parametrize(
    "options",
    [
        {"fitting": {"gradient_accumulation_steps": 2}},
        {"fitting": {"precision": "bf16-mixed"}},
        {"fitting": {"grad_clip": 0.0}},
        {"optimizing": {"ema": 0.9}},
        {"optimizing": {"lr_scales": {"conv1.weight": 0.25, "conv2.weight": 0.5}}},
        {"scarce": True},
    ],
    ids=lambda options: str(*options.values()),
)
def test_it_goes_on_with_each_option(whole, tmp_path, options):
    without = trained(tmp_path / "whole", **options)
    assert not same(without, whole[0])
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="broken off"):
        trained(folder, BreakOff(4), **options)
    assert same(trained(folder, resume=True, **options), without)
    assert traces(folder) == traces(tmp_path / "whole")


def test_without_validation_it_goes_on_too(tmp_path):
    without = trained(tmp_path / "whole", validates=False)
    for step in (2, 3, 7):
        folder = tmp_path / str(step)
        with pytest.raises(RuntimeError, match="broken off"):
            trained(folder, BreakOff(step), validates=False)
        assert same(trained(folder, resume=True, validates=False), without)


def test_batches_are_mixed_as_they_would_have_been(whole, tmp_path):
    mixing = Mixing(mixup=0.4, cutmix=1.0, num_classes=3, seed=0)
    without = trained(tmp_path / "whole", mixing=mixing)
    assert not same(without, whole[0])
    for step in (2, 4):
        folder = tmp_path / str(step)
        with pytest.raises(RuntimeError, match="broken off"):
            trained(folder, BreakOff(step), mixing=mixing)
        assert same(trained(folder, resume=True, mixing=mixing), without)
        assert traces(folder) == traces(tmp_path / "whole")


def test_what_is_finished_is_not_made_again(whole, tmp_path):
    trained(tmp_path / "run")
    again = trained(tmp_path / "run", BreakOff(0), resume=True)
    assert same(again, whole[0])
    assert traces(tmp_path / "run") == traces(whole[1])


def test_with_nothing_saved_yet_it_starts(whole, tmp_path):
    assert same(trained(tmp_path / "run", resume=True), whole[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 2, 5, 8])
def test_a_signal_ends_it_after_the_step_and_it_goes_on(whole, tmp_path, step, number, caplog):
    """Also in the last step of an epoch, which is validated first, and of all."""
    folder, before = tmp_path / "run", [signal.getsignal(s) for s in (signal.SIGINT, number)]
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}$"):
        trained(folder, Signal(step, number), saving=CheckpointInterval())
    assert "stopping after this step and saving; press Ctrl-C again to stop at once" in caplog.text
    assert [signal.getsignal(s) for s in (signal.SIGINT, number)] == before
    last = find_last_checkpoint(folder / "checkpoints")
    assert last is not None
    assert last[1]["global_step"] == step + 1
    assert same(trained(folder, resume=True, saving=CheckpointInterval()), whole[0])
    assert traces(folder) == traces(whole[1])


def test_another_thread_may_ask_for_a_stop(whole, tmp_path):
    class Asked(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_step == 3:
                assert stop_fits()

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3$"):
        trained(tmp_path / "run", Asked(), saving=CheckpointInterval())
    assert not stop_fits()
    assert same(trained(tmp_path / "run", resume=True, saving=CheckpointInterval()), whole[0])


def test_a_second_signal_ends_it_at_once(tmp_path):
    twice = Signal(1, signal.SIGINT), Signal(1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", *twice, saving=CheckpointInterval())
    assert find_last_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_in_a_thread_there_are_no_signals(whole, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(trained(tmp_path / "run")))
    thread.start()
    thread.join()
    assert same(found[0], whole[0])


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize("renamed", [False, True])
def test_killed_while_the_outcome_is_put_in_its_place(
    tmp_path, monkeypatch, renamed, steps, validates
):
    without = trained(tmp_path / "whole", validates=validates)
    saving, folder = CheckpointInterval(steps=steps, minutes=60), tmp_path / "run"

    def die(checkpoints: Path) -> None:
        if read_checkpoint(checkpoints / "next.ckpt")["callbacks"]["SaveLast"]["finished"]:
            if renamed and (checkpoints / "last.ckpt").exists():
                (checkpoints / "last.ckpt").replace(checkpoints / "previous.ckpt")
            raise RuntimeError("killed")
        rotate_checkpoints(checkpoints)

    with monkeypatch.context() as patched:
        patched.setattr("delta_transfer.training.checkpoint_callbacks.rotate_checkpoints", die)
        with pytest.raises(RuntimeError, match="killed"):
            trained(folder, saving=saving, validates=validates)
    again = trained(folder, BreakOff(0), resume=True, saving=saving, validates=validates)
    assert same(again, without)


def test_a_stop_that_is_asked_for_at_the_very_end_is_one(whole, tmp_path):
    class Late(lightning.Callback):
        def on_train_end(self, trainer, module):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after the last step"):
        trained(tmp_path / "run", Late())
    assert same(trained(tmp_path / "run", resume=True), whole[0])


def test_a_state_of_another_device_is_taken_up(tmp_path, monkeypatch):
    """Without that device: tensors say where they were."""
    found = []
    load = torch.load

    def listen(source, map_location=None, **options):
        found.append(map_location)
        return load(source, map_location, **options)

    with pytest.raises(RuntimeError, match="broken off"):
        trained(tmp_path / "run", BreakOff(5))
    monkeypatch.setattr(torch, "load", listen)
    trained(tmp_path / "run", resume=True)
    assert set(found) == {"cpu"}


class TestDamage:
    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        with pytest.raises(RuntimeError, match="broken off"):
            trained(tmp_path / "run", BreakOff(5))
        return tmp_path / "run"

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
    def test_the_state_before_is_taken(self, whole, broken, damage, caplog):
        last = broken / "checkpoints" / "last.ckpt"
        content = bytearray(last.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 16
        last.write_bytes(
            {"cut": content[:-100], "flipped": content, "empty": b"", "gone": b""}[damage]
        )
        if damage == "gone":
            last.unlink()
        found = find_last_checkpoint(broken / "checkpoints")
        assert found is not None
        assert found[0].name == "previous.ckpt"
        assert ("last.ckpt is damaged and is ignored" in caplog.text) == (damage != "gone")
        assert same(trained(broken, resume=True), whole[0])

    def test_any_bit_that_matters_is_noticed(self, broken):
        """Padding between the parts of the archive may change: it means nothing."""
        path = broken / "checkpoints" / "last.ckpt"
        content, generator = path.read_bytes(), np.random.default_rng(0)
        expected = torch.load(path, weights_only=True)["state_dict"]
        noticed = 0
        for place in generator.integers(0, 8 * len(content), 200):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << (place % 8)
            path.write_bytes(changed)
            found = read_checkpoint(path)
            noticed += found is None
            if found is not None:
                for name, tensor in found["state_dict"].items():
                    assert torch.equal(tensor, expected[name])
        assert noticed > 100

    def test_another_versions_is_not_used(self, whole, broken, monkeypatch, caplog):
        with monkeypatch.context() as patched:
            patched.setattr("delta_transfer.training.checkpoints.FORMAT", 0)
            assert read_checkpoint(broken / "checkpoints" / "last.ckpt") is None
            assert "last.ckpt was written by another version and is ignored" in caplog.text
            with pytest.raises(RuntimeError, match="broken off"):
                trained(broken, BreakOff(4), resume=True)
        assert find_last_checkpoint(broken / "checkpoints") is None
        assert same(trained(broken, resume=True), whole[0])

    def test_code_in_it_is_not_run(self, broken, tmp_path, caplog):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "owned"),)

        AtomicCheckpointIO().save_checkpoint(  # with the right checksum
            {"state_dict": Evil()}, broken / "checkpoints" / "last.ckpt"
        )
        assert read_checkpoint(broken / "checkpoints" / "last.ckpt") is None
        assert not (tmp_path / "owned").exists()
        assert "last.ckpt is damaged" in caplog.text


def test_the_last_two_states_are_kept(tmp_path):
    trained(tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {"last.ckpt", "previous.ckpt"}
    steps = [
        torch.load(checkpoints / n, weights_only=True)["global_step"]
        for n in ("last.ckpt", "previous.ckpt")
    ]
    assert steps == [9, 8]


def test_a_state_is_saved_when_its_time_has_come(tmp_path, monkeypatch):
    from delta_transfer.training import checkpoint_callbacks as module

    now, saved = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    class Clock(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            now[0] += 25

        def on_save_checkpoint(self, trainer, module, checkpoint):
            saved.append(trainer.global_step)

    trained(tmp_path / "run", Clock(), saving=CheckpointInterval(minutes=1))
    assert saved == [3, 6, 9]
    assert dataclasses.asdict(CheckpointInterval()) == {"minutes": 1.0, "steps": None}


@pytest.mark.parametrize("step", [1, 5])
def test_classes_that_are_drawn_equally_often_go_on(tmp_path, step):
    labels = [0] * 10 + [1] * 3 + [2]
    expected = trained(tmp_path / "whole", labels=labels)
    with pytest.raises(RuntimeError, match="broken off"):
        trained(tmp_path / "run", BreakOff(step), labels=labels)
    assert same(trained(tmp_path / "run", labels=labels, resume=True), expected)

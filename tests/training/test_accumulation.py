"""A step in parts is the step of the whole batch, and memory decides how many parts there are."""

import copy
import dataclasses
import importlib
import logging
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from delta_transfer.errors import UserError
from delta_transfer.methods.registry import METHODS, find_method
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.accumulation import GradientAccumulation
from delta_transfer.training.module import FineTuneModule, OptimizerConfig
from tests.methods.test_registry import PARTS
from tests.networks import conv_net, moved
from tests.training.test_fit import OPTIONS, plan, run

DIVISIBLE = [
    name
    for name, method in METHODS.items()
    if method.trains_network
    and not method.needs_whole_batch
    and method.batch_norm is None
    and "images" in method.kinds
]


def step(method: str, parts: int, *, preset: str = "default") -> tuple[dict[str, float], list]:
    """What is logged of a step of seven samples, and the gradients, in float64."""
    target, source = moved(conv_net()).double(), conv_net().double()
    torch.manual_seed(3)
    inputs, targets = torch.randn(7, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    given = copy.deepcopy(PARTS)
    found = find_method(method, preset=preset).build_penalties(given)
    regularizer = Regularizer(target, source, found).double()
    if regularizer.needs_calibration:
        regularizer.calibrate([(inputs,)])
    module = FineTuneModule(
        target,
        regularizer,
        loss=F.cross_entropy,
        head="fc",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(**OPTIONS),
        exit_stack=ExitStack(),
        accumulation=GradientAccumulation(parts),
    )
    parameters = [*target.parameters(), *regularizer.parameters()]
    for parameter in target.parameters():
        parameter.grad = torch.ones_like(parameter)  # of the step before
    module.trainer = SimpleNamespace(
        optimizers=[torch.optim.SGD(parameters, lr=0.1)],
        strategy=SimpleNamespace(backward=lambda loss, _: loss.backward()),
    )
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    with regularizer:
        torch.autograd.backward(module.training_step((inputs, targets), 0))
    values = {name: value.item() for name, value in logged.items()}
    return values, [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize("parts", [3, 100])
@pytest.mark.parametrize(
    ("method", "preset"),
    [
        *((name, "default") for name in DIVISIBLE),
        ("delta_attention", "paper"),
        ("delta", "paper"),
    ],
)
def test_parts_have_the_loss_and_the_gradient_of_the_whole_batch(method, preset, parts):
    (whole, gradients), (logged, found) = (
        step(method, number, preset=preset) for number in (1, parts)
    )
    assert logged == pytest.approx(whole, rel=1e-9)
    assert len(found) == len(gradients)
    for one, other in zip(gradients, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_what_looks_at_the_whole_batch_is_known():
    assert [n for n, m in METHODS.items() if m.needs_whole_batch] == ["bss"]
    (whole, _), (parts, _) = (step("bss", number) for number in (1, 3))
    assert whole["train_bss"] != pytest.approx(parts["train_bss"], rel=0.01)


def scarce(network: nn.Module, most: int, *, where: str) -> nn.Module:
    """Has memory for so many samples only, with gradients; it runs out late in a pass."""

    def forward(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if not torch.is_grad_enabled() or len(output) <= most:
            return
        if where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        output.register_hook(backward)

    def backward(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.fc.register_forward_hook(forward)
    return network


def trained(folder: Path, network: nn.Module, **options) -> dict[str, Tensor]:
    torch.manual_seed(0)  # of dropout
    what = dataclasses.replace(plan(folder, batch_size=5), **options)
    run(network, what, lr=0.05)
    return network.state_dict()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_where_memory_runs_out_the_step_is_taken_again_in_more_parts(tmp_path, caplog, where):
    caplog.set_level(logging.WARNING, "delta_transfer")
    found = trained(tmp_path / "scarce", scarce(conv_net(), 2, where=where))
    again = [text for text in caplog.messages if "out of memory" in text]
    assert [text.partition(" at once")[0] for text in again] == [
        "out of memory with 5 images",
        "out of memory with 3 images",
    ]
    assert "4 micro-batches" in again[1]
    expected = trained(tmp_path / "four", conv_net(), gradient_accumulation_steps=4)
    whole = trained(tmp_path / "whole", conv_net())
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    assert not torch.equal(found["conv1.weight"], whole["conv1.weight"])  # dropout is drawn anew
    assert (tmp_path / "scarce" / "metrics.csv").read_bytes() == (
        tmp_path / "four" / "metrics.csv"
    ).read_bytes()


def test_what_cannot_be_divided_further_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"with a single image.*image_size"):
        trained(tmp_path / "none", scarce(conv_net(), 0, where="forward"))
    with pytest.raises(UserError, match=r"5 images per step, .* smaller `batch_size`"):
        trained(tmp_path / "one", scarce(conv_net(), 2, where="forward"), can_split=False)
    with pytest.raises(UserError, match="a single graph: use a smaller `model`"):
        trained(tmp_path / "graph", scarce(conv_net(), 0, where="forward"), sample_type="graph")
    network = scarce(conv_net(), 2, where="forward")
    with pytest.raises(UserError, match=r"5 graphs per step, .* smaller `batch_size`"):
        trained(tmp_path / "graphs", network, can_split=False, sample_type="graph")


def test_parts_are_scaled_and_clipped_as_the_whole_batch_is(tmp_path, monkeypatch):
    """With a gradient scaler, as float16 has it: its own steps are those of float32."""
    plain = trained(tmp_path / "plain", conv_net(), gradient_accumulation_steps=3, grad_clip=0.1)
    module = importlib.import_module("delta_transfer.training.fit")
    make_trainer, scaler = module.make_trainer, torch.amp.GradScaler("cpu", init_scale=1024.0)

    def scaled(*args):
        trainer = make_trainer(*args)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
        return trainer

    monkeypatch.setattr(module, "make_trainer", scaled)
    half = trained(tmp_path / "half", conv_net(), gradient_accumulation_steps=3, grad_clip=0.1)
    assert scaler.get_scale() == 1024
    start = conv_net().state_dict()
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"):
        way, other = plain[name] - start[name], half[name] - start[name]
        assert (way - other).norm() < 0.05 * way.norm()

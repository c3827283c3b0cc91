import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from delta_transfer.errors import UserError
from delta_transfer.methods import Step
from delta_transfer.methods.registry import METHODS, find_method
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.trainer import find_precision
from tests.methods.test_registry import PARTS
from tests.networks import conv_net, moved
from tests.training.test_fit import plan, run

CPU = torch.device("cpu")


def wide(values):
    """Everything in float64."""
    if isinstance(values, Tensor):
        return values.double() if values.is_floating_point() else values
    return {name: wide(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("method", "preset"),
    [
        *(
            (name, "default")
            for name, method in METHODS.items()
            if "images" in method.kinds and method.build_penalties(copy.deepcopy(PARTS))
        ),
        ("delta_attention", "paper"),
        ("delta", "paper"),
    ],
)
def test_penalties_are_computed_in_float32_under_autocast(method, preset):
    """As exactly as that, from the features that the networks give in bfloat16."""
    target, source = moved(conv_net()), conv_net()
    inputs, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    found = find_method(method, preset=preset).build_penalties(copy.deepcopy(PARTS))
    regularizer = Regularizer(target, source, found)
    if regularizer.needs_calibration:
        regularizer.calibrate([(inputs,)])
    steps: list[Step] = []
    regularizer.penalties[0].register_forward_pre_hook(lambda module, given: steps.append(given[0]))
    with regularizer, torch.autocast("cpu", torch.bfloat16):
        target(inputs)
        term = regularizer(inputs, targets).values[regularizer.term_names[0]]
    (step,) = steps
    some = [*step.target_features.values(), *step.head_inputs.values()]
    some += [*step.source_features.values(), *step.source_head_inputs.values()]
    if METHODS[method].compares_features or method in ("bss", "co_tuning"):
        assert some
    if method in ("delta_attention", "delta"):
        assert {features.dtype for features in some} == {torch.bfloat16}
    assert term.dtype == torch.float32
    exact = dataclasses.replace(
        step,
        target=copy.deepcopy(target).double(),
        source=copy.deepcopy(source).double(),
        **{
            name: wide(getattr(step, name))
            for name in ("target_features", "source_features", "head_inputs", "source_head_inputs")
        },
    )
    own = regularizer.penalties[0]  # calibrated, unlike the one that was passed
    expected = copy.deepcopy(own).double()(exact)
    assert term.item() == pytest.approx(expected.item(), rel=2e-6, abs=1e-7)


def test_a_fit_computes_in_it_and_keeps_its_weights_in_float32(tmp_path):
    network, seen = conv_net(), []
    network.conv2.register_forward_hook(lambda m, x, y: seen.append((m.training, y.dtype)))
    run(network, dataclasses.replace(plan(tmp_path), precision="bf16-mixed"), lr=0.02)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def test_names_mean_what_the_device_has(monkeypatch):
    cuda = torch.device("cuda")
    assert find_precision("32", cuda) == "32-true"
    assert find_precision("bf16", CPU) == "bf16-mixed"
    assert find_precision("16", cuda) == "16-mixed"
    assert find_precision("auto", CPU) == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert find_precision("auto", cuda) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert find_precision("auto", cuda) == "16-mixed"
    with pytest.raises(UserError, match=r"`precision=16` needs a GPU.*bf16"):
        find_precision("16", CPU)

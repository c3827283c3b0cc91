import copy
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from delta_transfer.errors import ConfigError
from delta_transfer.utils.module_state import (
    deterministic_algorithms,
    device_of,
    eval_mode,
    preserve_random_state,
    weights_fingerprint,
    without_parameter_gradients,
)
from tests.networks import ConvNet, conv_net


class Problem(Exception):
    pass


@pytest.fixture
def net():
    net = ConvNet().train()
    net.norm1.eval()  # flags differ between modules
    net.conv1.weight.requires_grad_(False)
    return net


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_gives_each_module_its_own_flag_back(net, fails):
    flags = [module.training for module in net.modules()]
    try:
        with eval_mode(net):
            assert not any(module.training for module in net.modules())
            net.train()
            if fails:
                raise Problem
    except Problem:
        pass
    assert [module.training for module in net.modules()] == flags


@pytest.mark.parametrize("fails", [False, True])
def test_without_parameter_gradients_gives_each_parameter_its_own_flag_back(net, fails):
    flags = [parameter.requires_grad for parameter in net.parameters()]
    try:
        with without_parameter_gradients(net):
            assert not any(parameter.requires_grad for parameter in net.parameters())
            if fails:
                raise Problem
    except Problem:
        pass
    assert [parameter.requires_grad for parameter in net.parameters()] == flags


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


@pytest.mark.parametrize("fails", [False, True])
def test_same_random_state_covers_python_numpy_and_torch(net, fails):
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = draw()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    try:
        with preserve_random_state(net):
            draw()
            if fails:
                raise Problem
    except Problem:
        pass
    assert draw() == expected


def test_device_of_asks_parameters_then_buffers():
    norm = nn.BatchNorm1d(2, affine=False, device="meta")
    assert device_of(norm) == torch.device("meta")
    assert device_of(nn.Linear(1, 1)) == device_of(nn.ReLU()) == torch.device("cpu")


class TestDeterministic:
    def test_settings_of_torch_are_restored(self, monkeypatch):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        with deterministic_algorithms(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.backends.cudnn.deterministic
            assert not torch.backends.cudnn.benchmark
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.deterministic
        assert torch.backends.cudnn.benchmark
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ

    def test_settings_are_restored_after_an_error(self, monkeypatch):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with pytest.raises(RuntimeError, match=r"^other$"), deterministic_algorithms(True):
                raise RuntimeError("other")
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        finally:
            torch.use_deterministic_algorithms(False)

    def test_an_operation_without_deterministic_algorithm_is_an_error(self):
        said = (
            "avg_pool does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
        )
        with (
            pytest.raises(ConfigError, match=r"`deterministic`: avg_pool does not .* `device=cpu`"),
            deterministic_algorithms(True),
        ):
            raise RuntimeError(said)

    def test_disabled_it_changes_nothing(self):
        with deterministic_algorithms(False):
            assert not torch.are_deterministic_algorithms_enabled()


def test_a_fingerprint_is_that_of_weights_and_statistics_without_the_head():
    net = conv_net()
    expected = weights_fingerprint(net, head="fc")
    assert len(expected) == 64
    other = copy.deepcopy(net).train()
    other.fc = nn.Linear(6, 9)
    assert weights_fingerprint(other, head="fc") == expected
    assert weights_fingerprint(other.to(memory_format=torch.channels_last), head="fc") == expected
    for change in ("conv1.weight", "norm2.running_mean"):
        other = copy.deepcopy(net)
        other.state_dict()[change].flatten()[0] += 1
        assert weights_fingerprint(other, head="fc") != expected
    assert weights_fingerprint(net, head="conv3") != expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool], ids=str)
def test_a_fingerprint_takes_any_dtype_and_empty_tensors(dtype):
    net = nn.Module()
    net.register_buffer("some", torch.ones(2, 3).to(dtype))
    net.register_buffer("empty", torch.ones(0).to(dtype))
    assert len(weights_fingerprint(net, head="fc")) == 64

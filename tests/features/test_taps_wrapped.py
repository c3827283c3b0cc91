"""Taps of networks that are wrapped, compiled, or both."""

import contextlib

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from delta_transfer.features.stages import auto_taps, unwrap
from delta_transfer.features.taps import Taps
from tests import reference
from tests.networks import conv_net, hooks_of

TAPS = ("conv1", "norm1", "norm2", "conv3")


def images(count=2, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def process_group(tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.fixture
def compiler():
    """The compiler without its back end, which needs a C++ compiler; starts anew each time."""
    torch._dynamo.reset()
    yield lambda net, backend="eager": torch.compile(net, backend=backend)
    torch._dynamo.reset()


def check(model: nn.Module) -> None:
    """Values and gradients through the wrapper are those of the plain network."""
    plain = conv_net()
    with Taps(model, TAPS) as taps:
        for seed in range(3):
            plain.zero_grad()
            model.zero_grad()
            result, copies = reference.hooked(plain, TAPS, images(seed=seed))
            (result.sum() + sum(copy.square().sum() for copy in copies.values())).backward()
            found = model(images(seed=seed))
            outputs = taps.outputs()
            (found.sum() + sum(o.square().sum() for o in outputs.values())).backward()
            assert torch.allclose(found, result, atol=1e-6)
            for name in TAPS:
                assert torch.allclose(outputs[name], copies[name], atol=1e-6)
    for expected, parameter in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.allclose(parameter.grad, expected.grad, atol=1e-5)
    assert hooks_of(unwrap(model)) == 0


def test_unwrap_leaves_a_plain_network_alone():
    net = conv_net()
    assert unwrap(net) is net
    assert unwrap(DataParallel(AveragedModel(net))).state_dict().keys() == net.state_dict().keys()


def test_ddp(process_group):
    net = conv_net()
    model = DistributedDataParallel(net)
    assert unwrap(model) is net
    assert auto_taps(model) == auto_taps(net)
    check(model)


def test_data_parallel_on_the_cpu():
    check(DataParallel(conv_net()))


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_fabric(strategy, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, strategy=strategy)
    fabric.launch()
    net = conv_net()
    model = fabric.setup(net)
    assert unwrap(model) is net
    try:
        check(model)
    finally:
        if torch.distributed.is_initialized():
            destroy_process_group()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(compiler, backend):
    net = conv_net()
    model = compiler(net, backend)
    assert unwrap(model) is net
    check(model)


def test_compiled_inside_ddp_and_around_it(compiler, process_group):
    check(DistributedDataParallel(compiler(conv_net())))
    check(compiler(DistributedDataParallel(conv_net())))


def test_compiled_in_place(compiler):
    net = conv_net()
    net.compile(backend="eager")
    check(net)
    with Taps(net, TAPS[:2]) as taps:
        found = taps.record(images())
    expected = reference.hooked(conv_net(), TAPS[:2], images())[1]
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in TAPS[:2])


def test_hooks_are_left_out_of_compiled_graphs(compiler):
    compiled = []

    def backend(graph, inputs):
        compiled.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    model = compiler(conv_net(), backend)
    with Taps(model, TAPS) as taps:
        model(images())
        taps.outputs()
    assert any("conv" in operation for operation in compiled)
    assert not any("clone" in operation for operation in compiled)


def test_a_compiled_step_that_reads_the_taps(compiler):
    net = conv_net()
    with Taps(net, TAPS) as taps:

        def step(x):
            return net(x), {name: output * 1 for name, output in taps.outputs().items()}

        compiled = compiler(step)
        for seed in range(2):
            result, found = compiled(images(seed=seed))
            expected, copies = reference.hooked(conv_net(), TAPS, images(seed=seed))
            assert torch.allclose(result, expected, atol=1e-6)
            assert all(torch.allclose(found[n], copies[n], atol=1e-6) for n in TAPS)


def test_hooks_set_after_the_first_compiled_call_are_not_silently_missed(compiler):
    net = conv_net()
    model = compiler(net)
    model(images())
    with Taps(model, TAPS) as taps:
        model(images())
        with pytest.raises(RuntimeError, match="compiled network must be called for the first"):
            taps.outputs()
        net(images())  # the network itself is not compiled
        taps.outputs()


def test_a_second_context_on_a_compiled_network_is_right_or_an_error(compiler):
    """Hooks of the first context are part of the compiled network; they must not act any more."""
    net = conv_net()
    model = compiler(net)
    with Taps(model, TAPS) as first:
        model(images())
    first.clear()
    with Taps(model, TAPS) as second:
        for seed in range(2):
            result = model(images(seed=seed))
            expected, copies = reference.hooked(conv_net(), TAPS, images(seed=seed))
            assert torch.allclose(result, expected, atol=1e-6)
            with contextlib.suppress(RuntimeError):
                found = second.outputs()
                assert all(torch.allclose(found[n], copies[n], atol=1e-6) for n in TAPS)
    with pytest.raises(RuntimeError, match="no forward pass"):
        first.outputs()

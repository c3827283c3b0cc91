import pytest
import torch
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.methods import L2, Step
from tests import reference
from tests.methods.on_weights import TOLERANCE, check_copies, check_gradients
from tests.networks import conv_net


class WithTokens(nn.Module):
    """Holds a parameter of its own, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.ones(2))
        self.fc = nn.Linear(3, 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("modules", "parts"),
    [("fc", ["fc"]), (["fc", "conv?"], ["fc", "conv1", "conv2", "conv3"]), ("norm*", None)],
    ids=["fc", "several", "norms"],
)
def test_l2_is_the_formula(modules, parts, dtype):
    net = conv_net().to(dtype)
    found = L2(modules, strength=0.3)(Step(target=net, source=None))
    chosen = [net.get_submodule(name) for name in parts or ["norm1", "norm2"]]
    parameters = [parameter for module in chosen for parameter in module.parameters()]
    assert found.item() == pytest.approx(
        0.3 * 0.5 * reference.squared_norm(parameters), rel=TOLERANCE[dtype]
    )


def test_l2_counts_each_parameter_once():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    found = L2(["a", "b", "*"], strength=2.0)(Step(target=net, source=None))
    parameters = [net["a"].weight, net["a"].bias, net["b"].bias]
    assert found.item() == pytest.approx(reference.squared_norm(parameters))


def test_a_star_is_every_parameter_also_those_of_the_network_itself():
    net = WithTokens()
    found = L2("*", strength=2.0)(Step(target=net, source=None))
    assert found.item() == pytest.approx(reference.squared_norm(list(net.parameters())))


def test_l2_errors():
    net = conv_net()
    with pytest.raises(UserError, match="unknown module 'head'"):
        L2("head", strength=1.0)(Step(target=net, source=None))
    with pytest.raises(UserError, match="no parameters in relu, pool"):
        L2(["relu", "pool"], strength=1.0)(Step(target=net, source=None))


def test_gradients():
    check_gradients(L2("*", strength=0.3))


def test_copies_and_pickles_are_the_same_penalty():
    check_copies(L2("fc", strength=0.3))

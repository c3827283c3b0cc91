import copy
import pickle

import pytest
import torch
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.methods import L2, L2SP, Step
from tests import reference
from tests.networks import conv_net, moved

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_l2sp_is_the_formula_over_all_parameters_that_both_have(dtype):
    source = conv_net().to(dtype)
    target = moved(source)
    target.fc = nn.Linear(6, 7).to(dtype)  # a head of another shape starts from nowhere
    target.added = nn.Linear(2, 2).to(dtype)
    found = L2SP(strength=0.3)(Step(target=target, source=source))
    expected = 0.3 * 0.5 * reference.squared_way(target, source)
    assert found.item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    by_hand = [
        now.detach() - then.detach()
        for name in ("conv1", "norm1", "conv2", "norm2", "conv3")
        for now, then in zip(
            target.get_submodule(name).parameters(),
            source.get_submodule(name).parameters(),
            strict=True,
        )
    ]
    assert expected == pytest.approx(0.3 * 0.5 * reference.squared_norm(by_hand))


def test_l2sp_counts_batch_norm_and_is_zero_at_the_start():
    source = conv_net()
    target = copy.deepcopy(source)
    step = Step(target=target, source=source)
    assert L2SP(strength=1.0)(step).item() == 0
    with torch.no_grad():
        target.norm1.bias[0] += 2
    assert L2SP(strength=1.0)(step).item() == pytest.approx(2.0)


@pytest.mark.parametrize("penalty", [L2("*", strength=0.3), L2SP(strength=0.3)], ids=["l2", "l2sp"])
def test_gradients(penalty):
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    target = moved(source)
    names = [name for name, _ in target.named_parameters()]

    def term(*parameters):
        changed = copy.deepcopy(target)
        for name, parameter in zip(names, parameters, strict=True):
            module, _, attribute = name.rpartition(".")
            changed.get_submodule(module)._parameters[attribute] = parameter
        return penalty(Step(target=changed, source=source))

    assert torch.autograd.gradcheck(term, tuple(target.parameters()))
    penalty(Step(target=target, source=source)).backward()
    start = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        way = parameter - start[name] if isinstance(penalty, L2SP) else parameter
        assert torch.allclose(parameter.grad, 0.3 * way)
    assert all(parameter.grad is None for parameter in source.parameters())


def test_l2sp_errors():
    with pytest.raises(UserError, match="needs the source"):
        L2SP(strength=1.0)(Step(target=conv_net(), source=None))
    with pytest.raises(UserError, match="share no parameter"):
        L2SP(strength=1.0)(Step(target=conv_net(), source=nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "penalty", [L2("fc", strength=0.3), L2SP(strength=0.3)], ids=["l2", "l2sp"]
)
def test_copies_and_pickles_are_the_same_penalty(penalty):
    source = conv_net()
    step = Step(target=moved(source), source=source)
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert other(step).item() == penalty(step).item()
        assert (other.name, other.strength) == (penalty.name, 0.3)
    assert not penalty.state_dict()

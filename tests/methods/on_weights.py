"""Checks of penalties on weights, with a strength of 0.3."""

import copy
import pickle

import torch
from torch import nn

from delta_transfer.methods import Penalty, Step
from tests.networks import conv_net, moved

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def check_gradients(penalty: Penalty) -> None:
    """Check them by finite differences and against the formula, of all weights."""
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
        way = parameter - start[name] if penalty.needs_source else parameter
        assert torch.allclose(parameter.grad, 0.3 * way)
    assert all(parameter.grad is None for parameter in source.parameters())


def check_copies(penalty: Penalty) -> None:
    """Check that copies and pickles are the same penalty."""
    source = conv_net()
    step = Step(target=moved(source), source=source)
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert other(step).item() == penalty(step).item()
        assert (other.name, other.strength) == (penalty.name, 0.3)
    assert not penalty.state_dict()

import copy
import pickle

import pytest
import torch
from torch import nn

from delta_transfer import GTOT, Regularizer
from delta_transfer.errors import UserError
from delta_transfer.features.taps import Taps
from delta_transfer.methods import Step
from delta_transfer.methods.gtot import transport_distance
from tests.networks import moved
from tests.rows import graph_net, some_rows


@pytest.mark.parametrize("order", [0, 1, 2])
def test_in_a_training_loop(order):
    source, inputs = graph_net(), some_rows()
    target = moved(source)
    penalty = GTOT(["layers.1", "layers.2"], strength=2.0, order=order)
    with Regularizer(target, source, [penalty]) as regularizer:
        target(inputs)
        term = regularizer(inputs).total
        term.backward()
    expected = 0.0
    for i in range(len(inputs)):  # each graph by itself
        one, features = inputs[i : i + 1], []
        for network in (target, source):
            with Taps(network, ["layers.1", "layers.2"]) as taps, torch.no_grad():
                network(one)
            features.append(taps.outputs())
        for tap in ("layers.1", "layers.2"):
            now, then = (found[tap] for found in features)
            given = {"edges": one.edge_index, "groups": one.groups, "order": order}
            expected += transport_distance(now, then, **given).item() / len(inputs)
    assert term.item() == pytest.approx(2 * expected, rel=1e-4)
    assert target.layers[0].linear.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in source.parameters())


def step(inputs, rows):
    return Step(
        target=nn.Identity(),
        source=nn.Identity(),
        inputs=inputs,
        groups=getattr(inputs, "groups", None),
        target_features={"t": rows},
        source_features={"t": rows},
    )


def test_what_has_no_edges_and_what_is_pooled_is_refused():
    inputs, penalty = some_rows(), GTOT("t", strength=1.0)
    with pytest.raises(UserError, match=r"edge_index.*Tensor"):
        penalty(step(torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(UserError, match=r"gtot.*tap 't'"):
        penalty(step(inputs, torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="order must be at least 0, got -1"):
        GTOT("t", strength=1.0, order=-1)


def test_copies_and_pickles_are_the_same_penalty():
    inputs, penalty = some_rows(), GTOT("t", strength=0.3, order=2)
    given = step(inputs, torch.randn(len(inputs.x), 3))
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert other(given).item() == penalty(given).item() > 0
    assert not penalty.state_dict()

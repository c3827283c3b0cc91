import pytest
import torch

from delta_transfer.channel_attention import ChannelAttention
from delta_transfer.errors import UserError
from delta_transfer.methods import METHODS, Parts, find_method
from delta_transfer.penalties import Step
from delta_transfer.regularizer import Regularizer
from tests.networks import conv_net, moved

ATTENTION = ChannelAttention(
    scores={"conv2": torch.arange(4.0)},
    variance={"conv2": torch.tensor(2.0)},
    temperature=5.0,
    method="gradient",
    samples=1,
    source="",
)
PARTS = Parts(strength=0.5, head="fc", taps=("conv1", "conv2"), attention=ATTENTION)


def penalties(name: str) -> list[tuple[str, float, tuple[str, ...]]]:
    return [(p.name, p.strength, tuple(p.taps)) for p in METHODS[name].penalties(PARTS)]


def test_the_table_is_that_of_the_design():
    heads = {name: method.head for name, method in METHODS.items()}
    assert heads == {
        "probe": "probe",
        "l2": "random",
        "lp_ft": "probe",
        "l2sp": "probe",
        "delta_no_attention": "probe",
        "delta": "probe",
    }
    assert [name for name, method in METHODS.items() if not method.trains] == ["probe"]
    assert [name for name, method in METHODS.items() if method.decay] == ["l2", "lp_ft"]
    assert [name for name, method in METHODS.items() if method.attention] == ["delta"]
    assert all(method.name == name for name, method in METHODS.items())
    assert all(method.summary and method.paper.startswith("https") for method in METHODS.values())


@pytest.mark.parametrize("name", ["probe", "l2", "lp_ft"])
def test_methods_without_a_penalty_have_none(name):
    assert penalties(name) == []


def test_l2sp_and_delta_carry_the_head_term_beside_their_own():
    head = ("l2", 0.01, ())
    assert penalties("l2sp") == [("l2sp", 0.5, ()), head]
    assert penalties("delta_no_attention") == [("delta", 0.5, ("conv1", "conv2")), head]
    assert penalties("delta") == [("delta", 0.5, ("conv2",)), head]  # the taps of the attention


def test_the_head_term_is_half_the_squared_norm_of_weight_and_bias():
    net = moved(conv_net())
    _, head = METHODS["l2sp"].penalties(PARTS)
    expected = 0.01 * 0.5 * (net.fc.weight.square().sum() + net.fc.bias.square().sum())
    assert head(Step(target=net, source=None)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["l2sp", "delta", "delta_no_attention"])
def test_at_the_start_only_the_head_term_is_there(name):
    source, target = conv_net(), conv_net()
    inputs = torch.randn(4, 3, 8, 8)
    regularizer = Regularizer(target, source, METHODS[name].penalties(PARTS))
    regularizer.calibrate([inputs])
    with regularizer:
        target.train()
        target.drop.p = 0.0
        target(inputs)
        own, head = regularizer(inputs).values.values()
    assert own.item() == 0
    assert head.item() > 0


def test_each_call_makes_penalties_of_its_own():
    first, second = (METHODS["delta"].penalties(PARTS)[0] for _ in range(2))
    assert first is not second


def test_an_unknown_method_is_refused_with_the_names():
    with pytest.raises(UserError, match=r"unknown method 'l3': choose from probe, l2, lp_ft"):
        find_method("l3")
    assert find_method("l2") is METHODS["l2"]

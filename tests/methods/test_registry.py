import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import delta_transfer
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.methods import Step
from delta_transfer.methods.base import PenaltyContext
from delta_transfer.methods.registry import (
    METHODS,
    check_classifier,
    check_kind,
    find_method,
    method_of,
)
from delta_transfer.regularizer import Regularizer
from tests.networks import conv_net, moved

ATTENTION = ChannelAttention(
    scores={"conv2": torch.arange(4.0)},
    variance={"conv2": torch.tensor(2.0)},
    temperature=5.0,
    estimator="gradient",
    samples=1,
    source="",
)
OFFICIAL = ("l2", "l2sp", "delta", "delta_attention")
# Each of the six a permutation of the same numbers, whose variance is 6.
FEATURES = torch.stack(
    [
        torch.tensor([-3.0, 0.0, 3.0] * 3)[
            torch.randperm(9, generator=torch.Generator().manual_seed(column))
        ]
        for column in range(6)
    ],
    dim=1,
)
PARTS = PenaltyContext(
    strength=0.5,
    head="fc",
    taps=("conv1", "conv2"),
    attention=ATTENTION,
    classifier=nn.Linear(6, 8),
    features=FEATURES,
    labels=torch.tensor([0, 1, 2] * 3),
    num_outputs=3,
)


def penalties(name: str) -> list[tuple[str, float, tuple[str, ...]]]:
    found = METHODS[name].build_penalties(PARTS)
    return [(p.name, p.strength, tuple(p.taps)) for p in found]


def test_the_table_is_that_of_the_design():
    heads = {name: method.head_init for name, method in METHODS.items()}
    assert heads == {
        "probe": "probe",
        "l2": "random",
        "lp_ft": "probe",
        "l2sp": "probe",
        "delta": "probe",
        "delta_attention": "probe",
        "lwf": "probe",
        "bss": "random",
        "stochnorm": "random",
        "co_tuning": "random",
        "rifle": "random",
        "ldifs": "probe",
        "spd": "probe",
        "gtot": "probe",
    }
    assert [name for name, method in METHODS.items() if not method.trains_network] == ["probe"]
    options = {name: m.strength_option for name, m in METHODS.items()}
    assert {name: option for name, option in options.items() if option != "strength"} == {
        "probe": None,
        "l2": "weight_decay",
        "lp_ft": "weight_decay",
        "rifle": "weight_decay",
        "stochnorm": "probability",
        "spd": "projection_factor",
    }
    also = {name: m.weight_decay for name, m in METHODS.items() if m.weight_decay}
    assert also == dict.fromkeys(("l2", "lp_ft", "bss", "stochnorm", "co_tuning", "rifle"), 0.01)
    assert [name for name, m in METHODS.items() if m.needs_classifier] == ["lwf", "co_tuning"]
    assert [name for name, m in METHODS.items() if m.num_head_cycles != 1] == ["rifle"]
    assert [name for name, m in METHODS.items() if m.batch_norm] == ["stochnorm"]
    compared = ["delta", "delta_attention", "lwf", "ldifs", "gtot"]
    assert [name for name, m in METHODS.items() if m.compares_features] == compared
    kinds = {name: m.kinds for name, m in METHODS.items() if len(m.kinds) == 1}
    images = ("images",)
    assert kinds == {"lwf": images, "co_tuning": images, "gtot": ("graphs",)}
    assert [name for name, method in METHODS.items() if method.needs_attention] == [
        "delta_attention"
    ]
    assert all(method.name == name for name, method in METHODS.items())
    assert all(method.summary and method.paper.startswith("https") for method in METHODS.values())


def test_strengths_are_those_of_the_papers():
    published = {
        "lwf": 1.0,
        "bss": 0.001,
        "stochnorm": 0.5,
        "co_tuning": 2.3,
        "spd": 1.0,
    }
    assert {name: METHODS[name].default_strength for name in published} == published
    assert METHODS["rifle"].num_head_cycles == 3


@pytest.mark.parametrize("name", ["probe", "l2", "lp_ft", "rifle", "stochnorm"])
def test_methods_without_a_penalty_have_none(name):
    assert penalties(name) == []


def test_l2sp_and_delta_carry_the_head_term_beside_their_own():
    head = ("l2", 0.06, ())
    assert penalties("l2sp") == [("l2sp", 0.5, ()), head]
    assert penalties("delta") == [("delta", 0.5, ("conv1", "conv2")), head]
    assert penalties("delta_attention") == [
        ("delta", 0.5, ("conv2",)),
        head,
    ]  # the taps of the attention


def test_what_holds_the_network_carries_the_head_term_and_what_adds_to_plain_does_not():
    head = ("l2", 0.06, ())
    assert penalties("lwf") == [("lwf", 0.5, ()), head]
    assert penalties("ldifs") == [("ldifs", 0.5, ("conv1", "conv2")), head]
    assert penalties("spd") == [head]
    assert penalties("gtot") == [("gtot", 0.5, ("conv2",)), head]  # the last of the taps
    assert penalties("bss") == [("bss", 0.5, ())]
    assert penalties("co_tuning") == [("co_tuning", 0.5, ())]


def test_co_tunings_relationship_is_of_the_classifier_on_the_training_images():
    (penalty,) = METHODS["co_tuning"].build_penalties(PARTS)
    logits = PARTS.classifier(PARTS.features).detach()
    temperatures = [0.05 * 400 ** (i / 200) for i in range(201)]
    found = []
    for temperature in temperatures:
        probabilities = torch.softmax(logits / temperature, dim=1)
        means = [probabilities[PARTS.labels == y].mean(dim=0) for y in range(3)]
        found.append((penalty.relationship - torch.stack(means)).abs().max().item())
    assert min(found) < 1e-2  # at one of them; which one is tested beside the formula
    assert max(found) > 0.1
    assert PARTS.classifier.weight.grad is None


def test_a_method_for_other_samples_is_refused_with_those_that_do():
    for method in METHODS.values():
        for kind in method.kinds:
            check_kind(method, kind, "data")
    with pytest.raises(UserError, match=r"'gtot'.*graphs.*pets has images.*probe"):
        check_kind(METHODS["gtot"], "images", "pets")
    with pytest.raises(UserError, match=r"'lwf'.*images.*tu/X has graphs.*gtot"):
        check_kind(METHODS["lwf"], "graphs", "tu/X")


def test_a_missing_classifier_is_named_with_the_methods_that_need_none():
    for name in METHODS:
        check_classifier(METHODS[name], PARTS.classifier, "resnet50")
    for name in ("lwf", "co_tuning"):
        with pytest.raises(UserError, match=f"'{name}' .*classifier.*ConvNet.*`model`"):
            check_classifier(METHODS[name], None, "ConvNet")
    with pytest.raises(
        UserError, match=r"one of probe, l2, .*, delta_attention, bss, stochnorm, rifle, ldi"
    ):
        check_classifier(METHODS["lwf"], None, "ConvNet")
    check_classifier(METHODS["ldifs"], None, "ConvNet")


def test_no_source_names_a_device_to_compute_on():
    """Published versions of these methods compute on the first CUDA device or not at all."""
    sources = Path(delta_transfer.__file__).parent
    named = re.compile(r"""\.cuda\(|\.to\(["']|device=["'](?!cpu|meta)""")
    found = [path.name for path in sources.rglob("*.py") if named.search(path.read_text())]
    assert found == []


def test_the_head_term_is_half_the_squared_norm_in_units_of_what_the_head_sees():
    net = moved(conv_net())
    _, head = METHODS["l2sp"].build_penalties(PARTS)
    expected = 0.01 * 6 * 0.5 * (net.fc.weight.square().sum() + net.fc.bias.square().sum())
    assert head(Step(target=net, source=None)).item() == pytest.approx(expected.item())


def test_features_of_another_size_have_the_same_head_term_with_the_head_that_answers_alike():
    net, larger = moved(conv_net()), dataclasses.replace(PARTS, features=100 * FEATURES)
    _, head = METHODS["l2sp"].build_penalties(PARTS)
    _, other = METHODS["l2sp"].build_penalties(larger)
    nn.init.zeros_(net.fc.bias)  # which answers alike as it is
    before = head(Step(target=net, source=None)).item()
    with torch.no_grad():
        net.fc.weight /= 100
    assert other(Step(target=net, source=None)).item() == pytest.approx(before)


@pytest.mark.parametrize("name", ["l2sp", "delta_attention", "delta", "lwf", "ldifs"])
def test_at_the_start_only_the_head_term_is_there(name):
    source, target = conv_net(), conv_net()
    inputs = torch.randn(4, 3, 8, 8)
    regularizer = Regularizer(target, source, METHODS[name].build_penalties(PARTS))
    regularizer.calibrate([inputs])
    with regularizer:
        target.train()
        target.drop.p = 0.0
        target(inputs)
        own, head = regularizer(inputs).values.values()
    assert own.item() == pytest.approx(0, abs=1e-7)  # batch norm is fused: rounding
    assert head.item() > 0


def test_each_call_makes_penalties_of_its_own():
    first, second = (METHODS["delta_attention"].build_penalties(PARTS)[0] for _ in range(2))
    assert first is not second


def test_an_unknown_method_is_refused_with_the_names():
    with pytest.raises(UserError, match=r"unknown method 'l3': there are 14, .* probe, l2, l"):
        find_method("l3")
    assert find_method("l2") is METHODS["l2"]


def test_candidates_are_from_strong_to_weak():
    found = {name: m.candidates for name, m in METHODS.items() if m.candidates}
    assert set(found) == {"l2sp", "delta", "delta_attention"}
    for candidates in found.values():
        strengths = [one.strength for one in candidates]
        assert strengths == sorted(strengths, reverse=True)
        assert {one.head_init for one in candidates} == {None}


def test_on_graphs_the_trainings_of_delta_begin_with_heads_of_their_own():
    for name, method in METHODS.items():
        found = find_method(name, preset="graphs")
        if not method.candidates or name == "l2sp":
            assert found is method
            continue
        assert [one.head_init or found.head_init for one in found.candidates] == ["probe", "random"]
        assert found == dataclasses.replace(method, candidates=found.candidates)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "delta"),
        ({"attention": "none"}, "delta"),
        ({"attention": "refined"}, "delta_attention"),
        ({"attention": "some.safetensors"}, "delta_attention"),
        ({"method": "delta_attention"}, "delta_attention"),
        ({"method": "delta_attention", "attention": "none"}, "delta"),
        ({"method": "l2", "attention": "none"}, "l2"),
        ({"method": "l2", "attention": "refined"}, "l2"),
    ],
)
def test_the_attention_option_chooses_the_form_of_delta(options, expected):
    assert method_of(TrainOptions(data="x", **options).resolve()) is METHODS[expected]


@pytest.mark.parametrize(
    ("preset", "method", "source"),
    [("default", "delta", "refined"), ("paper", "delta_attention", "exact")],
)
def test_the_paper_has_attention_by_default(preset, method, source):
    config = TrainOptions(data="x", preset=preset).resolve()
    assert (config.method, config.attention, config.attention_source) == (method, "auto", source)
    own = TrainOptions(data="x", preset=preset, method="l2", attention="gradient").resolve()
    assert (own.method, own.attention_source) == ("l2", "gradient")


# ----------------------------------------------------------------------------------- official


def test_official_methods_start_at_random_with_the_authors_strength():
    found = {name: find_method(name, preset="paper") for name in OFFICIAL}
    assert {method.head_init for method in found.values()} == {"random"}
    assert {name: method.default_strength for name, method in found.items()} == {
        "l2": 1e-4,
        "l2sp": 0.01,
        "delta": 0.01,
        "delta_attention": 0.01,
    }
    for name, method in found.items():
        for field in (
            "name",
            "summary",
            "paper",
            "needs_attention",
            "trains_network",
        ):
            assert getattr(method, field) == getattr(METHODS[name], field)
    assert METHODS["delta_attention"].strength == 1.0  # the table is as it was
    assert METHODS["delta_attention"].head_init == "probe"


def test_official_penalties_are_those_of_the_authors():
    def made(name):
        found = find_method(name, preset="paper").build_penalties(PARTS)
        return [(p.name, p.strength, tuple(p.taps)) for p in found]

    head = ("l2", 0.01, ())
    assert made("l2") == []
    assert made("l2sp") == [("l2sp", 0.5, ()), head]
    assert made("delta") == [("delta", 0.5, ("conv1", "conv2")), head]
    assert made("delta_attention") == [("delta", 0.5, ("conv2",)), head]


@pytest.mark.parametrize(
    ("name", "factor"),
    # 1/2 of: channels times attention over positions; or nothing at all. Two samples, 4 positions.
    [("delta_attention", [0.1, 0.2, 0.3, 0.4]), ("delta", None)],
)
def test_official_features_are_summed_in_the_authors_scale(name, factor):
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()  # softmax(z / t) with t the deviation of z
    attention = ChannelAttention(
        scores={"conv2": scores},
        variance={"conv2": torch.tensor(2.0)},
        temperature=1 / float(scores.std(correction=0)),
        estimator="exact",
        samples=256,
        source="",
    )
    context = PenaltyContext(strength=0.01, head="fc", taps=("conv2",), attention=attention)
    generator = torch.Generator().manual_seed(0)
    now, then = (torch.randn(2, 4, 4, generator=generator) for _ in range(2))
    step = Step(
        target=nn.Identity(),
        source=nn.Identity(),
        target_features={"conv2": now},
        source_features={"conv2": then},
    )
    expected = 0.0
    for b in range(2):
        for s in range(4):
            for c in range(4):
                weight = 1.0 if factor is None else 4 * factor[c] / 4
                expected += 0.01 * 0.5 * weight * (now[b, s, c] - then[b, s, c]).item() ** 2
    delta, _ = find_method(name, preset="paper").build_penalties(context)
    assert delta(step).item() == pytest.approx(expected, rel=1e-5)
    (same, _), (ours, _) = (
        METHODS[name].build_penalties(dataclasses.replace(context, official=official))
        for official in (True, False)
    )
    assert same(step).item() == delta(step).item()
    assert ours is not same
    assert type(ours) is not type(same)


def test_official_l2sp_holds_batch_norm_too_but_not_the_head():
    source, target = conv_net(), conv_net()
    source.fc = nn.Identity()
    holding, _ = find_method("l2sp", preset="paper").build_penalties(PARTS)

    def term(**changed):
        moved_on = conv_net()
        with torch.no_grad():
            for name, by in changed.items():
                moved_on.get_parameter(name.replace("_", ".")).add_(by)
        return holding(Step(target=moved_on, source=source)).item()

    assert holding(Step(target=target, source=source)).item() == 0
    assert term(fc_weight=1.0, fc_bias=1.0) == 0
    for name in ("norm1_weight", "norm1_bias", "conv1_weight", "conv1_bias"):
        numel = target.get_parameter(name.replace("_", ".")).numel()
        assert term(**{name: 2.0}) == pytest.approx(0.5 * 0.5 * 4 * numel, rel=1e-5)


@pytest.mark.parametrize("name", ["probe", "lp_ft", "lwf", "rifle"])
def test_methods_that_the_authors_do_not_have_are_refused(name):
    message = f"'{name}'.*`preset=paper`.* l2, l2sp, delta, delta_attention,"
    with pytest.raises(UserError, match=message):
        find_method(name, preset="paper")
    with pytest.raises(UserError, match="unknown method 'l3'"):
        find_method("l3", preset="paper")

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.errors import UserError
from delta_transfer.functional import flatten_positions
from delta_transfer.methods import Delta, Step
from delta_transfer.regularizer import Regularizer
from tests import reference
from tests.networks import moved

LAYOUTS = {  # tap -> (shape, channel dimension): one tap of each layout
    "NCHW": ((3, 5, 2, 4), 1),
    "NHWC": ((3, 2, 4, 6), 3),
    "tokens": ((3, 7, 4), 2),
    "rows": ((3, 8), 1),
}
TAPS = tuple(LAYOUTS)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_attention(widths: dict[str, int], dtype=torch.float64, method="exact") -> ChannelAttention:
    return ChannelAttention(
        scores={
            tap: draw(width, dtype=dtype, seed=i) for i, (tap, width) in enumerate(widths.items())
        },
        variance={tap: torch.tensor(0.5 + i, dtype=dtype) for i, tap in enumerate(widths)},
        temperature=0.7,
        estimator=method,
        samples=3,
        source="",
    )


WIDTHS = {tap: shape[dim] for tap, (shape, dim) in LAYOUTS.items()}
VARIANCE = {tap: 0.5 + i for i, tap in enumerate(TAPS)}


def raw_features(dtype=torch.float64):
    both = []
    for seed in (1, 2):
        features = {
            tap: draw(*shape, dtype=dtype, seed=seed) for tap, (shape, _) in LAYOUTS.items()
        }
        both.append(features)
    return both


def step_of(target, source, dims=None, groups=None) -> Step:
    dims = dims or {tap: dim for tap, (_, dim) in LAYOUTS.items()}
    return Step(
        target=nn.Identity(),
        source=nn.Identity(),
        target_features={tap: flatten_positions(f, dims[tap]) for tap, f in target.items()},
        source_features={tap: flatten_positions(f, dims[tap]) for tap, f in source.items()},
        groups=groups,
    )


def make(attended: bool, strength=0.3, dtype=torch.float64, taps=TAPS) -> Delta:
    widths = {tap: WIDTHS[tap] for tap in taps}
    if attended:
        return Delta(some_attention(widths, dtype), strength=strength)
    delta = Delta(taps=list(taps), strength=strength)
    delta.calibrate(some_attention(widths, dtype).variance)
    return delta


def weights(attended: bool) -> dict[str, list[float] | None]:
    scores = some_attention(WIDTHS).scores
    return {
        tap: reference.attention(scores[tap].tolist(), 0.7) if attended else None for tap in TAPS
    }


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attended", [False, True])
def test_delta_is_the_formula(attended, dtype):
    target, source = raw_features(dtype)
    found = make(attended, dtype=dtype)(step_of(target, source))
    distances = [
        reference.distance(
            reference.maps(target[tap], tap),
            reference.maps(source[tap], tap),
            VARIANCE[tap],
            weights(attended)[tap],
        )
        for tap in TAPS
    ]
    assert found.dtype == dtype
    assert found.item() == pytest.approx(0.3 * sum(distances) / 4, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("attended", [False, True])
def test_delta_of_graph_nodes_counts_each_graph_once(attended):
    groups = [1, 0, 1, 1, 2, 0, 2]
    target, source = draw(7, 8, seed=1), draw(7, 8, seed=2)
    delta = make(attended, taps=["rows"])
    found = delta(
        step_of({"rows": target}, {"rows": source}, {"rows": 1}, groups=torch.tensor(groups))
    )
    scores = some_attention({"rows": 8}).scores["rows"].tolist()
    expected = reference.distance(
        reference.grouped(target, groups),
        reference.grouped(source, groups),
        0.5,
        reference.attention(scores, 0.7) if attended else None,
    )
    assert found.item() == pytest.approx(0.3 * expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attended", [False, True])
def test_official_is_the_authors_formula_on_a_resnet(attended, dtype):
    torch.manual_seed(0)
    source = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3).to(dtype).eval()
    target = moved(source, by=0.01).eval()
    taps = [f"layer{i}.0.conv3" for i in (1, 2, 3, 4)]
    x = draw(2, 3, 32, 32, dtype=dtype, seed=5)
    with torch.no_grad():
        features = [reference.hooked(net, taps, x)[1] for net in (target, source)]
    attention = some_attention({tap: 128 * 2**i for i, tap in enumerate(taps, start=1)}, dtype)
    expected = sum(
        reference.official(
            reference.maps(features[0][tap], "NCHW"),
            reference.maps(features[1][tap], "NCHW"),
            reference.attention(attention.scores[tap].tolist(), 0.7) if attended else None,
        )
        for tap in taps
    )
    penalty = Delta.official(attention) if attended else Delta.official(taps=taps)
    found = penalty(step_of(*features, dims=dict.fromkeys(taps, 1)))
    assert penalty.strength == 0.01
    assert found.dtype == dtype
    assert found.item() == pytest.approx(0.01 * expected, rel=TOLERANCE[dtype])


# --------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
def test_strength_means_the_same_for_features_of_another_scale(scale):
    """The unit of the distance is measured, however small it is."""
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    inputs = draw(6, 3, 8, 8, dtype=torch.float32, seed=5)

    def term(scale: float) -> float:
        scaled = copy.deepcopy(source)
        with torch.no_grad():
            for parameter in scaled[0].parameters():
                parameter.mul_(scale)
        target = copy.deepcopy(scaled)
        with torch.no_grad():
            for parameter in target[0].parameters():
                parameter.mul_(1.1)
        regularizer = Regularizer(target, scaled, [Delta(taps="0", strength=1.0)])
        regularizer.calibrate([inputs])
        with regularizer:
            target(inputs)
            return regularizer(inputs).total.item()

    assert term(scale) == pytest.approx(term(1.0), rel=1e-3)


@pytest.mark.parametrize("attended", [False, True])
def test_delta_depends_on_no_size(attended):
    """Defect 4: neither on batch size, image size, scale of the features nor number of taps."""
    delta = make(attended, taps=["NCHW", "tokens"])
    target, source = raw_features()
    pair = [{tap: f[tap] for tap in ("NCHW", "tokens")} for f in (target, source)]
    plain = delta(step_of(*pair)).item()

    batch = [{tap: torch.cat([f, f]) for tap, f in side.items()} for side in pair]
    assert delta(step_of(*batch)).item() == pytest.approx(plain)

    size = [
        {"NCHW": side["NCHW"].repeat(1, 1, 3, 2), "tokens": side["tokens"].repeat(1, 5, 1)}
        for side in pair
    ]
    assert delta(step_of(*size)).item() == pytest.approx(plain)

    scaled = make(attended, taps=["NCHW", "tokens"])
    scaled.calibrate({"NCHW": torch.tensor(100 * 0.5), "tokens": torch.tensor(100 * 1.5)})
    ten = [{tap: 10 * f for tap, f in side.items()} for side in pair]
    assert scaled(step_of(*ten)).item() == pytest.approx(plain)

    one = make(attended, taps=["NCHW"])
    alone = [{"NCHW": side["NCHW"]} for side in pair]
    twice = [{"NCHW": side["NCHW"], "again": side["NCHW"]} for side in pair]
    if attended:
        attention = some_attention({"NCHW": 5})
        two = Delta(
            ChannelAttention(
                scores={"NCHW": attention.scores["NCHW"], "again": attention.scores["NCHW"]},
                variance={tap: attention.variance["NCHW"] for tap in ("NCHW", "again")},
                temperature=0.7,
                estimator="exact",
                samples=3,
                source="",
            ),
            strength=0.3,
        )
    else:
        two = Delta(taps=["NCHW", "again"], strength=0.3)
        two.calibrate(dict.fromkeys(("NCHW", "again"), torch.tensor(0.5)))
    dims = {"NCHW": 1, "again": 1}
    assert two(step_of(*twice, dims)).item() == pytest.approx(one(step_of(*alone, dims)).item())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_uniform_attention_is_no_attention(dtype):
    attention = ChannelAttention(
        scores={tap: torch.full((width,), 0.1, dtype=dtype) for tap, width in WIDTHS.items()},
        variance={tap: torch.tensor(value, dtype=dtype) for tap, value in VARIANCE.items()},
        temperature=5.0,
        estimator="exact",
        samples=3,
        source="",
    )
    step = step_of(*raw_features(dtype))
    with_it = Delta(attention, strength=0.3)(step).item()
    assert with_it == pytest.approx(make(False, dtype=dtype)(step).item(), rel=1e-6)


def test_equal_features_are_at_no_distance():
    features, _ = raw_features(torch.float32)
    for penalty in (make(True), make(False), Delta.official(taps=TAPS)):
        assert penalty(step_of(features, copy.deepcopy(features))).item() == 0


# ---------------------------------------------------------------------- gradients, precision


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("official", [False, True])
def test_gradients(attended, official):
    target, source = raw_features()
    if official:
        attention = some_attention(WIDTHS)
        penalty = Delta.official(attention) if attended else Delta.official(taps=TAPS)
    else:
        penalty = make(attended)

    def term(*features):
        return penalty(step_of(dict(zip(TAPS, features, strict=True)), source))

    inputs = tuple(target[tap].requires_grad_() for tap in TAPS)
    assert torch.autograd.gradcheck(term, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attended", [False, True])
def test_half_precision_features(attended, dtype):
    target, source = raw_features(dtype)
    for tap in TAPS:
        target[tap].requires_grad_()
    term = make(attended, dtype=torch.float32)(step_of(target, source))
    term.backward()
    wide = [{tap: f.detach().float() for tap, f in side.items()} for side in (target, source)]
    expected = make(attended, dtype=torch.float32)(step_of(*wide))
    assert term.dtype == torch.float32
    assert torch.equal(term, expected)
    assert all(target[tap].grad.isfinite().all() for tap in TAPS)


# -------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("attended", [False, True])
def test_state_moves_copies_and_pickles(attended):
    delta = make(attended, dtype=torch.float32)
    step = step_of(*raw_features())
    expected = delta(step).item()
    for other in (copy.deepcopy(delta), pickle.loads(pickle.dumps(delta))):
        assert other(step).item() == expected
        assert other.taps == TAPS
        other.load_state_dict(delta.state_dict())
    double = copy.deepcopy(delta).to(torch.float64)
    assert all(buffer.dtype == torch.float64 for buffer in double.buffers())
    assert double(step).item() == pytest.approx(expected, rel=1e-6)
    assert len(list(delta.buffers())) == (5 if attended else 1)
    assert not list(delta.parameters())


def test_a_delta_without_calibration_takes_the_state_of_one_with():
    delta = make(False)
    step = step_of(*raw_features())
    fresh = Delta(taps=TAPS, strength=0.3)
    for copied in (fresh, copy.deepcopy(Delta(taps=TAPS, strength=0.3))):
        copied.load_state_dict(delta.state_dict())
        assert copied(step).item() == pytest.approx(delta(step).item(), rel=1e-6)
    inside = nn.ModuleDict({"delta": Delta(taps=TAPS, strength=0.3)})
    inside.load_state_dict(nn.ModuleDict({"delta": delta}).state_dict())
    assert inside["delta"](step).item() == pytest.approx(delta(step).item(), rel=1e-6)


def test_a_state_without_variances_is_an_error_of_torch_and_leaves_those_there_are():
    delta = make(False)
    step = step_of(*raw_features())
    expected = delta(step).item()
    with pytest.raises(RuntimeError, match=r'Missing key.*"variance"'):
        delta.load_state_dict({})
    delta.load_state_dict({}, strict=False)
    assert delta(step).item() == expected


def test_variances_go_where_the_penalty_is():
    """The "meta" device is one that every machine has."""
    calibrated, loaded = (Delta(taps=TAPS, strength=0.3).to("meta") for _ in range(2))
    calibrated.calibrate(some_attention(WIDTHS).variance)
    with pytest.warns(UserWarning, match="copying from a non-meta parameter"):
        loaded.load_state_dict(make(False).state_dict())
    for delta in (calibrated, loaded):
        assert delta.variance.device.type == "meta"
        assert delta.variance.shape == (len(TAPS),)


def test_a_calibrated_delta_takes_the_state_of_one_that_is_not_and_says_so():
    delta = make(False)
    delta.load_state_dict(Delta(taps=TAPS, strength=0.3).state_dict())
    with pytest.raises(UserError, match="not calibrated"):
        delta(step_of(*raw_features()))


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("taps", [TAPS, TAPS[:1]], ids=["four taps", "one tap"])
def test_no_calibration_is_an_error_that_says_how(taps):
    with pytest.raises(UserError, match=r"not calibrated.*regularizer.calibrate"):
        Delta(taps=taps, strength=0.3)(step_of(*raw_features()))


@pytest.mark.parametrize("make_it", [Delta, Delta.official], ids=["delta", "paper"])
def test_attention_and_taps_exclude_one_another(make_it):
    with pytest.raises(ValueError, match="got neither"):
        make_it(strength=0.3)
    with pytest.raises(ValueError, match="got both"):
        make_it(some_attention(WIDTHS), taps="auto", strength=0.3)


@pytest.mark.parametrize("make_it", [Delta, Delta.official], ids=["delta", "paper"])
def test_attention_of_another_network_is_an_error(make_it):
    penalty = make_it(some_attention(WIDTHS | {"tokens": 9}), strength=0.3)
    with pytest.raises(UserError, match="'tokens' has 9 channels, the features have 4"):
        penalty(step_of(*raw_features()))

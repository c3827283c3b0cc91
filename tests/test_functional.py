import math

import pytest
import torch

from delta_transfer.functional import (
    at_least_float32,
    effective_channels,
    feature_distance,
    flatten_positions,
    normalize_scores,
    normalized_entropy,
    official_distance,
    without_autocast,
)
from tests import reference

LAYOUTS = {  # layout -> (shape, channel dimension)
    "NCHW": ((3, 5, 2, 4), 1),
    "NHWC": ((3, 2, 4, 5), 3),
    "tokens": ((3, 7, 5), 2),
    "rows": ((6, 5), 1),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pair(layout, dtype=torch.float64):
    """Target and source as tensors `[B, S, C]`, and the same two as nested lists."""
    shape, channel_dim = LAYOUTS[layout]
    both = draw(*shape, dtype=dtype, seed=1), draw(*shape, dtype=dtype, seed=2)
    tensors = [flatten_positions(features, channel_dim) for features in both]
    return *tensors, *(reference.maps(features, layout) for features in both)


def some_attention(channels=5, dtype=torch.float64):
    return torch.softmax(draw(channels, dtype=dtype, seed=3), dim=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_last_orders_samples_positions_channels(layout):
    shape, channel_dim = LAYOUTS[layout]
    features = draw(*shape)
    found = flatten_positions(features, channel_dim)
    if layout == "rows":
        assert found is features
    else:
        assert found.tolist() == reference.maps(features, layout)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attended", [False, True])
def test_feature_distance_is_the_formula(layout, dtype, attended):
    target, source, target_maps, source_maps = pair(layout, dtype)
    attention = some_attention(dtype=dtype) if attended else None
    found = feature_distance(
        target, source, variance=torch.tensor(0.7, dtype=dtype), attention=attention
    )
    expected = reference.distance(
        target_maps, source_maps, 0.7, attention.tolist() if attended else None
    )
    assert found.dtype == dtype
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attended", [False, True])
def test_rows_with_groups_count_each_sample_once(dtype, attended):
    groups = [0, 2, 0, 0, 5, 2]  # of three samples; the numbers need not be dense
    target, source = draw(6, 5, dtype=dtype, seed=1), draw(6, 5, dtype=dtype, seed=2)
    attention = some_attention(dtype=dtype) if attended else None
    found = feature_distance(
        target,
        source,
        variance=torch.tensor(0.7, dtype=dtype),
        attention=attention,
        groups=torch.tensor(groups),
    )
    expected = reference.distance(
        reference.grouped(target, groups),
        reference.grouped(source, groups),
        0.7,
        attention.tolist() if attended else None,
    )
    assert found.item() == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attended", [False, True])
def test_official_distance_is_the_formula(layout, dtype, attended):
    target, source, target_maps, source_maps = pair(layout, dtype)
    attention = some_attention(dtype=dtype) if attended else None
    found = official_distance(target, source, attention=attention)
    expected = reference.official(
        target_maps, source_maps, attention.tolist() if attended else None
    )
    assert found.item() == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_uniform_attention_is_no_attention(dtype):
    target, source, *_ = pair("NCHW", dtype)
    uniform = torch.full((5,), 1 / 5, dtype=dtype)
    variance = torch.tensor(0.7, dtype=dtype)
    with_it = feature_distance(target, source, variance=variance, attention=uniform).item()
    assert with_it == pytest.approx(
        feature_distance(target, source, variance=variance).item(), rel=1e-6
    )
    # In the authors' formula the two differ by the number of positions.
    with_it = official_distance(target, source, attention=uniform).item()
    assert with_it == pytest.approx(official_distance(target, source).item() / 8, rel=1e-6)


@pytest.mark.parametrize("attended", [False, True])
def test_distance_depends_on_no_size(attended):
    target, source, *_ = pair("NCHW")
    attention = some_attention() if attended else None

    def distance(target, source, variance=0.7):
        found = feature_distance(
            target,
            source,
            variance=torch.tensor(variance, dtype=torch.float64),
            attention=attention,
        )
        return found.item()

    plain = distance(target, source)
    assert distance(target.repeat(2, 1, 1), source.repeat(2, 1, 1)) == pytest.approx(plain)
    assert distance(target.repeat(1, 3, 1), source.repeat(1, 3, 1)) == pytest.approx(plain)
    assert distance(10 * target, 10 * source, 100 * 0.7) == pytest.approx(plain)


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "rows"])
def test_gradients(layout, attended):
    target, source, *_ = pair(layout)
    target.requires_grad_()
    attention = some_attention() if attended else None
    variance = torch.tensor(0.7, dtype=torch.float64)
    groups = torch.tensor([0, 1, 0, 0, 2, 1]) if layout == "rows" else None

    def unit_free(target):
        return feature_distance(
            target, source, variance=variance, attention=attention, groups=groups
        )

    def official(target):
        return official_distance(target, source, attention=attention)

    assert torch.autograd.gradcheck(unit_free, target)
    assert torch.autograd.gradcheck(official, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_features_are_summed_in_float32(dtype):
    # 300^2 summed over 4096 positions is far beyond the range of float16.
    target = torch.full((2, 4096, 3), 300.0, dtype=dtype, requires_grad=True)
    source = torch.zeros(2, 4096, 3, dtype=dtype)
    found = feature_distance(target, source, variance=torch.tensor(300.0**2))
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.5, rel=0.01)
    assert target.grad.dtype == dtype
    assert at_least_float32(source).dtype == torch.float32
    assert official_distance(target, source).item() == pytest.approx(
        0.5 * 300.0**2 * 2 * 4096 * 3, rel=0.01
    )


def test_autocast_changes_nothing():
    target, source = draw(6, 5, dtype=torch.float32), draw(6, 5, dtype=torch.float32, seed=1)
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    options = {"variance": torch.tensor(0.7), "attention": some_attention(dtype=torch.float32)}
    with torch.autocast("cpu", torch.bfloat16):
        cast = feature_distance(target, source, groups=groups, **options)
    assert torch.equal(cast, feature_distance(target, source, groups=groups, **options))


def test_shapes_that_do_not_fit_are_errors():
    one = torch.tensor(1.0)
    for distance in (official_distance, lambda t, s: feature_distance(t, s, variance=one)):
        with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 1, 4\)"):
            distance(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4))
    maps, groups = torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="groups"):
        feature_distance(maps, maps, variance=one, groups=groups)
    rows = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="groups"):
        feature_distance(rows, rows, variance=one, groups=groups)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_attention_is_the_formula(dtype, temperature):
    scores = 1e-4 * draw(64, dtype=dtype) + 3
    found = normalize_scores(scores, temperature=temperature)
    expected = reference.attention(scores.tolist(), temperature)
    tolerance = {torch.float32: 1e-2, torch.float64: 1e-9}[dtype]  # differences of near numbers
    assert found.tolist() == pytest.approx(expected, rel=tolerance)
    assert found.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("clip", [0.1, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("floor", [False, True])
def test_attention_with_limits_is_the_formula(dtype, clip, floor):
    scores = draw(64, dtype=dtype) + 0.3
    found = normalize_scores(scores, temperature=0.7, score_clip=clip, clamp_negative_scores=floor)
    expected = reference.attention(scores.tolist(), 0.7, clip, floor)
    assert found.tolist() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)
    assert found.sum().item() == pytest.approx(1, abs=1e-6)


def test_a_clip_holds_outliers_back_and_leaves_the_rest_as_it_is():
    scores = draw(50)
    scores[7] = 100.0
    plain, clipped = (
        normalize_scores(scores, temperature=1.0, score_clip=clip) for clip in (None, 3.0)
    )
    assert plain[7] > 0.9
    assert clipped[7] < 0.4
    assert clipped.argmax() == 7
    rest = torch.arange(50) != 7
    assert torch.allclose(clipped[rest] / clipped[0], plain[rest] / plain[0])
    assert torch.equal(normalize_scores(scores, temperature=1.0, score_clip=1e9), plain)


def test_a_floor_makes_all_that_does_harm_equal():
    scores = torch.tensor([-9.0, -1e-3, 0.0, 1.0, 2.0])
    found = normalize_scores(scores, temperature=1.0, clamp_negative_scores=True)
    assert found[0] == found[1] == found[2] < found[3] < found[4]
    assert torch.equal(normalize_scores(scores.clamp(min=0), temperature=1.0), found)
    assert scores[0] == -9  # the caller's are not changed
    nothing = normalize_scores(-scores.abs(), temperature=1.0, clamp_negative_scores=True)
    assert nothing.tolist() == pytest.approx([1 / 5] * 5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_entropy_is_the_formula(dtype):
    for channels in (2, 3, 100):
        attention = torch.softmax(2 * draw(channels, dtype=dtype), dim=0)
        nats = reference.entropy(attention.tolist())
        assert normalized_entropy(attention).dtype == dtype
        found = normalized_entropy(attention).item()
        assert found == pytest.approx(nats / math.log(channels), rel=1e-5)
        assert effective_channels(attention).item() == pytest.approx(math.exp(nats), rel=1e-5)
        assert 1 < effective_channels(attention) < channels


@pytest.mark.parametrize("channels", [1, 2, 7, 1000])
def test_entropy_of_uniform_attention_and_of_a_single_channel(channels):
    uniform = torch.full((channels,), 1 / channels)
    assert normalized_entropy(uniform).item() == pytest.approx(1, rel=1e-5)
    assert effective_channels(uniform).item() == pytest.approx(channels, rel=1e-4)
    single = torch.zeros(channels)
    single[-1] = 1
    assert normalized_entropy(single).item() == (0 if channels > 1 else 1)
    assert effective_channels(single).item() == 1


def test_attention_knows_no_unit_and_a_large_temperature_is_uniform():
    scores = draw(8)
    found = normalize_scores(scores, temperature=5.0)
    assert torch.allclose(normalize_scores(1e6 * scores - 7, temperature=5.0), found)
    assert found.argmax() == scores.argmax()
    uniform = normalize_scores(scores, temperature=1e9)
    assert uniform.tolist() == pytest.approx([1 / 8] * 8)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e-9, 7e5])
@pytest.mark.parametrize("channels", [1, 3, 100, 1000])
def test_equal_scores_give_uniform_attention(value, channels):
    found = normalize_scores(torch.full((channels,), value), temperature=1.0)
    assert found.tolist() == pytest.approx([1 / channels] * channels, rel=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("value", [0.1, -3e-9, 7e5])
def test_scores_that_differ_by_rounding_are_equal(dtype, value):
    scores = torch.full((8,), value, dtype=dtype)
    scores[:3] = torch.nextafter(scores[:3], torch.full((3,), math.inf, dtype=dtype))
    assert normalize_scores(scores, temperature=1.0).tolist() == pytest.approx([1 / 8] * 8)


def test_bad_scores_and_temperatures_are_errors():
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            normalize_scores(torch.ones(3), temperature=temperature)
    for clip in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="score_clip must be positive"):
            normalize_scores(torch.ones(3), temperature=1.0, score_clip=clip)
    with pytest.raises(ValueError, match="must be finite"):
        normalize_scores(torch.tensor([0.0, float("nan")]), temperature=1.0)


def test_products_are_in_full_precision_on_any_device():
    a, b = draw(8, 8, dtype=torch.float32, seed=1), draw(8, 8, dtype=torch.float32, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        with without_autocast(a.device):
            assert torch.allclose(a @ b, (a.double() @ b.double()).float(), atol=1e-5)
        assert (a @ b).dtype == torch.bfloat16
    with without_autocast(torch.device("meta")):  # which has no autocast
        assert (a.to("meta") @ b.to("meta")).dtype == torch.float32

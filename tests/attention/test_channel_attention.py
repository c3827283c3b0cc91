import dataclasses
import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.errors import DataError, UserError
from tests import reference

KINDS = ("scores", "standard_errors", "attention", "variance", "influential_samples")


def some_attention(**changes) -> ChannelAttention:
    torch.manual_seed(0)
    fields = {
        "scores": {"layer4.1": torch.randn(6), "layer2": torch.randn(4)},
        "standard_errors": {"layer4.1": torch.rand(6), "layer2": torch.rand(4)},
        "variance": {"layer4.1": torch.tensor(0.3), "layer2": torch.tensor(1.5)},
        "influential_samples": {
            "layer4.1": torch.arange(12).view(6, 2),
            "layer2": torch.arange(16).view(4, 4),
        },
        "uncertainty": {"layer4.1": 0.25, "layer2": math.nan},
        "temperature": 2.5,
        "estimator": "gradient",
        "samples": 12,
        "source": "abc",
        "head_weight": torch.randn(3, 5),
        "head_bias": torch.randn(3),
        "data": "def",
        "preprocessing": {"image_size": 64, "mean": [0.5, 0.5, 0.5], "interpolation": None},
    }
    return ChannelAttention(**(fields | changes))


def contents(path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of its file, and what the file says of them."""
    some_attention().save(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["delta-transfer"])
    return load_file(path), about


def test_attention_is_that_of_the_scores_in_the_order_of_the_taps():
    attention = some_attention()
    assert attention.taps == ("layer4.1", "layer2")
    for tap in attention.taps:
        expected = reference.attention(attention.scores[tap].tolist(), 2.5)
        assert attention.attention[tap].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_low_temperature_concentrates_and_a_high_one_spreads():
    def largest(temperature):
        return some_attention(temperature=temperature).attention["layer2"].max().item()

    assert largest(1e6) == pytest.approx(1 / 4, rel=1e-4)
    assert largest(5.0) < largest(1.0) < largest(0.2)
    assert largest(1e-3) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "form", [{}, {"score_clip": 0.5, "clamp_negative_scores": True}], ids=["plain", "limited"]
)
def test_attention_is_limited_as_it_says(form):
    attention = some_attention(**form)
    for tap in attention.taps:
        expected = reference.attention(attention.scores[tap].tolist(), 2.5, **form)
        assert attention.attention[tap].tolist() == pytest.approx(expected, rel=1e-5)
        nats = reference.entropy(expected)
        assert attention.entropy[tap] == pytest.approx(nats / math.log(len(expected)), rel=1e-5)
        assert attention.effective_channels[tap] == pytest.approx(math.exp(nats), rel=1e-5)


def test_an_attention_made_by_hand_needs_scores_and_variance_alone():
    attention = ChannelAttention(
        scores={"a": torch.arange(3.0)},
        variance={"a": torch.tensor(1.0)},
        temperature=1.0,
        estimator="mine",
        samples=0,
        source="",
    )
    assert attention.taps == ("a",)
    assert (attention.score_clip, attention.clamp_negative_scores, attention.head_weight) == (
        None,
        False,
        None,
    )
    assert attention.standard_errors == attention.influential_samples == attention.uncertainty == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"layer2": torch.zeros(4)}}, "scores and variance must be of the same taps"),
        ({"variance": {"layer2": torch.ones(())}}, "scores and variance must be of the same taps"),
        ({"standard_errors": {"layer2": torch.zeros(5)}}, r"standard_errors/layer2 must be \[4\]"),
        (
            {"influential_samples": {"layer2": torch.zeros(4, 2)}},
            "influential_samples/layer2 must be int64",
        ),
        (
            {"influential_samples": {"layer2": torch.zeros(3, 2).long()}},
            "influential_samples/layer2 must be int64",
        ),
        (
            {"influential_samples": {"layer2": torch.zeros(4).long()}},
            "influential_samples/layer2 must be int64",
        ),
        ({"head_weight": None}, "head.weight and head.bias must be"),
        ({"head_bias": None}, "head.weight and head.bias must be"),
        ({"head_bias": torch.zeros(4)}, "head.weight and head.bias must be"),
        ({"head_weight": torch.zeros(3)}, "head.weight and head.bias must be"),
    ],
)
def test_what_does_not_fit_the_scores_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        some_attention(**changes)


@pytest.mark.parametrize("scores", [torch.zeros(4, 1), torch.zeros(0), torch.arange(4)])
def test_scores_are_floats_of_channels(scores):
    with pytest.raises(ValueError, match="scores/a must be floats"):
        some_attention(scores={"a": scores}, variance={"a": torch.ones(())})
    with pytest.raises(ValueError, match="variance/a must be a scalar"):
        some_attention(scores={"a": torch.ones(4)}, variance={"a": torch.ones(1)})


# --------------------------------------------------------------------------------------- file


@pytest.mark.parametrize(
    "limits", [{}, {"score_clip": 0.5, "clamp_negative_scores": True}], ids=["plain", "limited"]
)
def test_a_file_keeps_everything(tmp_path, limits):
    attention = some_attention(**limits)
    path = tmp_path / "attention.safetensors"
    attention.save(str(path))
    loaded = ChannelAttention.load(path)
    assert loaded.taps == attention.taps
    for name in KINDS:
        ours, theirs = getattr(attention, name), getattr(loaded, name)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[tap], theirs[tap]) for tap in attention.taps)
        assert all(ours[tap].dtype == theirs[tap].dtype for tap in attention.taps)
    assert torch.equal(loaded.head_weight, attention.head_weight)
    assert torch.equal(loaded.head_bias, attention.head_bias)
    assert loaded.uncertainty["layer4.1"] == 0.25
    assert math.isnan(loaded.uncertainty["layer2"])
    for field in dataclasses.fields(ChannelAttention):
        value = getattr(attention, field.name)
        if not isinstance(value, torch.Tensor) and field.name not in (
            "scores standard_errors variance influential_samples uncertainty".split()
        ):
            assert getattr(loaded, field.name) == value


def test_a_file_of_what_is_known_alone(tmp_path):
    nothing = {name: {} for name in ("standard_errors", "influential_samples", "uncertainty")}
    nothing |= dict.fromkeys(("head_weight", "head_bias", "data", "preprocessing"))
    some_attention(**nothing).save(tmp_path / "a")
    loaded = ChannelAttention.load(tmp_path / "a")
    assert all(getattr(loaded, name) == value for name, value in nothing.items())
    assert set(load_file(tmp_path / "a")) == {
        f"{kind}/{tap}"
        for kind in ("scores", "variance", "attention")
        for tap in ("layer4.1", "layer2")
    }


def test_errors_that_are_not_known_are_kept(tmp_path):
    errors = {"layer4.1": torch.full((6,), math.nan), "layer2": torch.zeros(4)}
    some_attention(standard_errors=errors, uncertainty={"layer2": math.inf}).save(tmp_path / "a")
    loaded = ChannelAttention.load(tmp_path / "a")
    assert loaded.standard_errors["layer4.1"].isnan().all()
    assert math.isnan(loaded.uncertainty["layer2"])  # JSON has neither


def test_the_file_says_what_it_is_to_readers_without_this_package(tmp_path):
    some_attention(score_clip=3.0).save(tmp_path / "a")
    tensors = load_file(tmp_path / "a")
    assert set(tensors) == {"head.weight", "head.bias"} | {
        f"{kind}/{tap}" for kind in KINDS for tap in ("layer4.1", "layer2")
    }
    with safe_open(tmp_path / "a", framework="pt") as file:
        (entry,) = file.metadata().values()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    about = json.loads(entry, parse_constant=refuse)
    assert about == {
        "format": "delta-transfer channel attention 3",
        "tensors": about["tensors"],
        "taps": ["layer4.1", "layer2"],
        "estimator": "gradient",
        "samples": 12,
        "temperature": 2.5,
        "score_clip": 3.0,
        "clamp_negative_scores": False,
        "uncertainty": {"layer4.1": 0.25, "layer2": None},
        "preprocessing": {"image_size": 64, "mean": [0.5, 0.5, 0.5], "interpolation": None},
        "source": "abc",
        "data": "def",
    }
    assert set(about["tensors"]) == set(tensors)


def test_equal_contents_are_equal_bytes_readable_without_this_package(tmp_path):
    some_attention().save(tmp_path / "a")
    for copy_of_it in "bcde":
        ChannelAttention.load(tmp_path / "a").save(tmp_path / copy_of_it)
        assert (tmp_path / copy_of_it).read_bytes() == (tmp_path / "a").read_bytes()
    attention = load_file(tmp_path / "a")["attention/layer2"]
    assert torch.equal(attention, some_attention().attention["layer2"])
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert json.loads(file.metadata()["delta-transfer"])["taps"] == ["layer4.1", "layer2"]


def test_tensors_that_are_views_can_be_saved(tmp_path):
    both = torch.randn(4, 2)
    scores = {"layer4.1": both[:, 0], "layer2": both[:, 1]}
    attention = some_attention(scores=scores, standard_errors={}, influential_samples={})
    attention.save(tmp_path / "a")
    assert torch.equal(ChannelAttention.load(tmp_path / "a").scores["layer2"], both[:, 1])


def test_missing_and_damaged_files_are_errors(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        ChannelAttention.load(tmp_path / "none")
    with pytest.raises(UserError, match="there is no such file"):
        ChannelAttention.load(tmp_path)
    path = tmp_path / "attention"
    some_attention().save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no tensors in here", whole[:40], whole[:-9], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a safetensors file"):
            ChannelAttention.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=["none", "other"])
def test_other_safetensors_files_are_errors(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model", metadata=metadata)
    with pytest.raises(UserError, match="is not channel attention"):
        ChannelAttention.load(tmp_path / "model")


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_of_an_older_format_is_refused(tmp_path, number):
    old = {"format": f"delta-transfer channel attention {number}", "taps": ["a"]}
    metadata = {"delta-transfer": json.dumps(old)}
    save_file({"scores/a": torch.zeros(2)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(UserError, match=rf"format .*attention {number}'.* 3': estimate it again"):
        ChannelAttention.load(tmp_path / "a")


def without(name):
    return lambda tensors, about: tensors.pop(name)


def put(name, tensor):
    return lambda tensors, about: tensors.__setitem__(name, tensor)


def say(**changes):
    return lambda tensors, about: about.update(changes)


def unsay(name):
    return lambda tensors, about: about.pop(name)


TENSORS = [
    *(f"{kind}/{tap}" for kind in KINDS for tap in ("layer4.1", "layer2")),
    "head.weight",
    "head.bias",
]
ENTRIES = (  # beside the format
    "tensors taps estimator samples temperature score_clip clamp_negative_scores "
    "uncertainty preprocessing source data"
).split()


def mistyped(name, value):
    """Another value in the metadata, and the message."""
    return say(**{name: value}), TYPE.format(name)


TYPE = "'{}' in its metadata is missing or of the wrong type"
MISSING = "tensors are missing: {}"
SCORES = "{} does not match its scores"
FINITE = "{} has values that are not finite"
FLOATS = "scores/layer2 must be floats [C], got torch.{}"
ERRORS = "standard_errors/layer2 must be [{}], got torch.float32 [{}]"
INFLUENTIAL = "influential_samples/layer2 must be int64 [C, k], got torch.{}"
HEAD = "head.weight and head.bias must be [K, F] and [K]"
TAPS = "its taps are not distinct names"
CHANGES = {
    **{f"without {name}": (without(name), MISSING.format(name)) for name in TENSORS},
    "scores of another shape": (
        put("scores/layer2", torch.zeros(2, 2)),
        FLOATS.format("float32 [2, 2]"),
    ),
    "more scores": (put("scores/layer2", torch.arange(5.0)), ERRORS.format(5, 4)),
    "other scores": (put("scores/layer2", torch.arange(4.0)), SCORES.format("attention/layer2")),
    "whole scores": (put("scores/layer2", torch.arange(4)), FLOATS.format("int64 [4]")),
    "no scores": (put("scores/layer2", torch.zeros(0)), FLOATS.format("float32 [0]")),
    "infinite scores": (
        put("scores/layer2", torch.full((4,), math.inf)),
        FINITE.format("scores/layer2"),
    ),
    "errors of another shape": (put("standard_errors/layer2", torch.zeros(3)), ERRORS.format(4, 3)),
    "variance of another shape": (
        put("variance/layer2", torch.zeros(4)),
        "variance/layer2 must be a scalar",
    ),
    "variance that is not a number": (
        put("variance/layer2", torch.tensor(math.nan)),
        FINITE.format("variance/layer2"),
    ),
    "attention of another shape": (
        put("attention/layer2", torch.full((3,), 1 / 3)),
        SCORES.format("attention/layer2"),
    ),
    "attention that is not the scores'": (
        put("attention/layer2", torch.full((4,), 1 / 4)),
        SCORES.format("attention/layer2"),
    ),
    "attention that is not a number": (
        put("attention/layer2", torch.full((4,), math.nan)),
        FINITE.format("attention/layer2"),
    ),
    "drivers of another shape": (
        put("influential_samples/layer2", torch.zeros(3, 2).long()),
        INFLUENTIAL.format("int64 [3, 2]"),
    ),
    "drivers of another kind": (
        put("influential_samples/layer2", torch.zeros(4, 2)),
        INFLUENTIAL.format("float32 [4, 2]"),
    ),
    "head weight of another shape": (put("head.weight", torch.zeros(3)), HEAD),
    "head bias of another shape": (put("head.bias", torch.zeros(2)), HEAD),
    "head that is not a number": (
        put("head.bias", torch.full((3,), math.nan)),
        FINITE.format("head.bias"),
    ),
    **{f"unsaid {name}": (unsay(name), TYPE.format(name)) for name in ENTRIES},
    "no taps": (say(taps=[]), TAPS),
    "equal taps": (say(taps=["layer2", "layer2"]), TAPS),
    "another tap": (
        say(taps=["layer4.1", "layer3"]),
        MISSING.format("attention/layer3, scores/layer3, variance/layer3"),
    ),
    "taps that are no names": (say(taps=[["layer2"], 3]), TAPS),
    "another tensor": (say(tensors=["scores/layer3"]), MISSING.format("scores/layer3")),
    "tensors that are no names": (say(tensors=[3, None]), MISSING.format("3, None")),
    "temperature in words": mistyped("temperature", "warm"),
    "temperature below zero": (say(temperature=-1), "temperature must be positive, got -1"),
    "another temperature": (say(temperature=1.0), SCORES.format("attention/layer4.1")),
    "true temperature": mistyped("temperature", True),
    "clip below zero": (say(score_clip=-1.0), "score_clip must be positive, got -1.0"),
    "another clip": (say(score_clip=0.1), SCORES.format("attention/layer4.1")),
    "clip in words": mistyped("score_clip", "3"),
    "floor in numbers": mistyped("clamp_negative_scores", 1),
    "samples in words": mistyped("samples", "12"),
    "half a sample": mistyped("samples", 12.5),
    "source in numbers": mistyped("source", 3),
    "data in numbers": mistyped("data", 3),
    "preprocessing in a list": mistyped("preprocessing", []),
    "uncertainty in a list": mistyped("uncertainty", []),
    "uncertainty in words": (
        say(uncertainty={"layer2": "much"}),
        "the uncertainty of 'layer2' is not a number",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_file_is_one_clear_error(tmp_path, change):
    path = tmp_path / "attention"
    tensors, about = contents(path)
    function, problem = CHANGES[change]
    function(tensors, about)
    save_file(tensors, path, metadata={"delta-transfer": json.dumps(about)})
    message = f"{path} is damaged channel attention, {problem}: estimate it again"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        ChannelAttention.load(path)


NOT_JSON = "is damaged channel attention, its metadata is not JSON ("
OF_ANOTHER_KIND = "is not channel attention (its format is None): use the attention.safetensors of"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, NOT_JSON) for text in ("", "no JSON", "{", "[" * 100_000)),
        *((text, OF_ANOTHER_KIND) for text in ("[]", "3", "null", '"text"', "{}", '{"taps": []}')),
    ],
)
def test_metadata_that_describe_nothing_are_one_clear_error(tmp_path, text, message):
    path = tmp_path / "attention"
    tensors, _ = contents(path)
    save_file(tensors, path, metadata={"delta-transfer": text})
    with pytest.raises(DataError, match=f"^{re.escape(f'{path} {message}')}"):
        ChannelAttention.load(path)


def test_what_was_not_changed_loads(tmp_path):
    """What the tests of damage start from."""
    path = tmp_path / "attention"
    tensors, about = contents(path)
    save_file(tensors, path, metadata={"delta-transfer": json.dumps(about)})
    assert ChannelAttention.load(path).samples == 12

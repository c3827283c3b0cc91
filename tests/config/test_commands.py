import pytest

from delta_transfer.config.commands import (
    AttentionOptions,
    EvaluateOptions,
    PredictOptions,
    TapsOptions,
)
from delta_transfer.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"num_workers": -1}, "--num-workers must be at least 0, got -1"),
    ],
)
def test_loading_is_checked(options, message):
    with pytest.raises(UserError, match=message):
        EvaluateOptions(run="run", data="data", **options)
    with pytest.raises(UserError, match=message):
        PredictOptions(run="run", paths=("a",), **options)


def test_the_least_numbers_are_accepted():
    assert EvaluateOptions(run="run", data="data", batch_size=1, num_workers=0).num_workers == 0
    assert PredictOptions(run="run", paths=("a",), top=1, batch_size=1, num_workers=0).top == 1
    assert TapsOptions(model="resnet18", image_size=16).image_size == 16


def test_top_and_image_size_are_checked():
    with pytest.raises(UserError, match="--top must be at least 1, got 0"):
        PredictOptions(run="run", paths=("a",), top=0)
    with pytest.raises(UserError, match="--image-size must be at least 16, got 4"):
        TapsOptions(model="resnet18", image_size=4)


@pytest.mark.parametrize("name", ["tolerance", "temperature", "score_clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_what_attention_is_made_by_is_checked(name, value):
    with pytest.raises(UserError, match=f"--{name} must be above 0, got {value}"):
        AttentionOptions(data="data", **{name: value})
    with pytest.raises(UserError, match="--samples must be at least 1, got 0"):
        AttentionOptions(data="data", samples=0)
    assert AttentionOptions(data="data", samples=1, **{name: 1e-6}).samples == 1

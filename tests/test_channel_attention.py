import copy
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from delta_transfer.channel_attention import (
    VARIANCE_FLOOR,
    ChannelAttention,
    FeatureVariance,
    weights_fingerprint,
)
from delta_transfer.errors import UserError
from tests import reference
from tests.networks import conv_net


def some_attention(**changes) -> ChannelAttention:
    torch.manual_seed(0)
    fields = {
        "scores": {"layer4.1": torch.randn(6), "layer2": torch.randn(4)},
        "variance": {"layer4.1": torch.tensor(0.3), "layer2": torch.tensor(1.5)},
        "temperature": 2.5,
        "method": "gradient",
        "samples": 12,
        "source": "abc",
    }
    return ChannelAttention(**(fields | changes))


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


def test_a_file_keeps_everything(tmp_path):
    attention = some_attention()
    path = tmp_path / "attention.safetensors"
    attention.save(str(path))
    loaded = ChannelAttention.load(path)
    assert loaded.taps == attention.taps
    for name in ("scores", "variance", "attention"):
        ours, theirs = getattr(attention, name), getattr(loaded, name)
        assert all(torch.equal(ours[tap], theirs[tap]) for tap in attention.taps)
    for name in ("temperature", "method", "samples", "source"):
        assert getattr(loaded, name) == getattr(attention, name)


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
    attention = some_attention(scores={"layer4.1": both[:, 0], "layer2": both[:, 1]})
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
        with pytest.raises(UserError, match="is no safetensors file"):
            ChannelAttention.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=["none", "other"])
def test_other_safetensors_files_are_errors(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model", metadata=metadata)
    with pytest.raises(UserError, match="holds no channel attention"):
        ChannelAttention.load(tmp_path / "model")


# ----------------------------------------------------------------------------------- variance


def measured(batches) -> torch.Tensor:
    variance = FeatureVariance()
    for batch in batches:
        variance.update(batch)
    return variance.compute()


@pytest.mark.parametrize("shape", [(10, 3, 4), (10, 4)], ids=["maps", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_variance_is_numpys_whatever_the_batches(shape, dtype):
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=dtype) * torch.tensor([0.1, 1, 5, 20]) + 7
    expected = np.var(features.double().numpy().reshape(-1, 4), axis=0).mean()
    for sizes in ([10], [4, 4, 2], [1] * 10):
        found = measured(features.split(sizes))
        assert found.shape == ()
        assert found.dtype == dtype
        assert found.item() == pytest.approx(expected, rel=1e-5)
    lists = reference.maps(features, "tokens" if len(shape) == 3 else "rows")
    assert reference.variance([lists[:4], lists[4:]]) == pytest.approx(expected)


def test_variance_survives_a_large_mean_in_float32():
    torch.manual_seed(0)
    features = 1e4 + torch.randn(4000, 2)
    expected = np.var(features.double().numpy(), axis=0).mean()
    assert measured(features.split(32)).item() == pytest.approx(expected, rel=1e-3)


def test_half_precision_features_are_measured_in_float32():
    features = torch.full((8, 2048, 2), 300.0, dtype=torch.float16)
    features[:4] = -300
    found = measured(features.split(3))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(300.0**2, rel=1e-3)


def test_constant_features_have_the_floor_and_no_features_are_an_error():
    assert measured([torch.full((3, 2), 0.1)]).item() == pytest.approx(VARIANCE_FLOOR)
    with pytest.raises(ValueError, match="no features were given"):
        FeatureVariance().compute()


def test_variance_keeps_no_graph():
    assert not measured([torch.randn(3, 2, requires_grad=True)]).requires_grad


# -------------------------------------------------------------------------------- fingerprint


def test_a_fingerprint_is_that_of_weights_and_statistics_without_the_head():
    net = conv_net()
    expected = weights_fingerprint(net, head="fc")
    assert len(expected) == 64
    other = copy.deepcopy(net).train()
    other.fc = nn.Linear(6, 9)
    assert weights_fingerprint(other, head="fc") == expected
    assert weights_fingerprint(other.to(memory_format=torch.channels_last), head="fc") == expected
    for change in ("conv1.weight", "norm2.running_mean"):
        other = copy.deepcopy(net)
        other.state_dict()[change].flatten()[0] += 1
        assert weights_fingerprint(other, head="fc") != expected
    assert weights_fingerprint(net, head="conv3") != expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool], ids=str)
def test_a_fingerprint_takes_any_dtype_and_empty_tensors(dtype):
    net = nn.Module()
    net.register_buffer("some", torch.ones(2, 3).to(dtype))
    net.register_buffer("empty", torch.ones(0).to(dtype))
    assert len(weights_fingerprint(net, head="fc")) == 64

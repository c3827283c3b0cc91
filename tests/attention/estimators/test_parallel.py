import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delta_transfer.attention.estimators import parallel
from delta_transfer.attention.estimators.gradient import FirstOrderScorer
from delta_transfer.attention.estimators.parallel import (
    MultiDeviceScorer,
    check_shards_nonempty,
    replicate_on_devices,
)
from delta_transfer.attention.estimators.scorer import BatchScores
from delta_transfer.errors import ConfigError, UserError
from delta_transfer.features.probe import replace_head
from tests.attention.scorers import curved, patterns

TAPS = ("early", "late")


def scorer_of(network):
    return FirstOrderScorer(network.requires_grad_(False), taps=TAPS, loss=F.cross_entropy)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shares_together_are_the_batch(count):
    net, (x, y) = curved().double(), patterns(7)
    x = x.double()
    expected = scorer_of(net)(x, y)
    shares = MultiDeviceScorer(replicate_on_devices(net, ["cpu"] * count), scorer_of)
    for size in (7, 5, 7, 1, 7):  # at first one after the other, then side by side
        seen = []
        found = shares(x[:size], y[:size], progress=seen.append)
        for tap in TAPS:
            assert torch.allclose(found.scores[tap], expected.scores[tap][:size], atol=1e-12)
            assert torch.equal(found.features[tap], expected.features[tap][:size])
        assert sum(seen) == size * 56


def test_each_share_has_a_thread_once_all_have_started():
    threads, first = [], threading.get_ident()

    def make(network):
        def score(inputs, targets, *, progress=None):
            threads.append(threading.get_ident())
            if len(threads) > 3:
                together.wait()
            return BatchScores(scores={"a": inputs}, features={"a": inputs})

        return score

    together = threading.Barrier(2, timeout=20)  # broken if one waits for the other to end
    shares = MultiDeviceScorer([nn.Identity(), nn.Identity()], make)
    x = torch.arange(6.0).view(3, 2)
    for size in (1, 3, 3):  # the first batch has nothing for the second network
        assert torch.equal(shares(x[:size], torch.zeros(size)).scores["a"], x[:size])
    assert threads[:3] == [first] * 3
    assert len(threads) == 5
    assert first not in threads[3:]


def test_images_are_laid_out_for_the_device():
    seen = []

    def make(network):
        def score(inputs, targets, *, progress=None):
            seen.append(inputs.is_contiguous(memory_format=torch.channels_last))
            return BatchScores(scores={}, features={})

        return score

    MultiDeviceScorer([curved()], make)(*patterns(2))
    assert seen == [True]


def test_without_devices_the_network_itself_is_taken():
    net = curved()
    assert replicate_on_devices(net, None) == [net]
    assert replicate_on_devices(net, ["cpu"]) == [net]
    own, other = replicate_on_devices(net, [torch.device("cpu"), "cpu"])
    assert own is net
    assert other is not net
    (meta,) = replicate_on_devices(net, ["meta"])
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert {p.device.type for p in net.parameters()} == {"cpu"}


def test_a_copy_has_the_head_that_was_put_in():
    net, (x, _) = curved(), patterns(2)
    with replace_head(net, "fc", lambda features: features.sum(dim=1, keepdim=True)):
        _, other = replicate_on_devices(net, ["cpu", "cpu"])
        assert torch.equal(other(x), net(x))
        assert other(x).shape == (2, 1)


@pytest.mark.parametrize(
    ("devices", "message"),
    [([], "devices is empty"), (["gpu"], "devices: 'gpu' cannot be used"), (["xla"], "'xla'")],
)
def test_devices_that_are_not_there_are_errors(devices, message):
    with pytest.raises(UserError, match=message):
        replicate_on_devices(curved(), devices)


def test_fewer_samples_than_processes_are_an_error_that_fits_every_caller(monkeypatch):
    """`estimate_attention` and `train` have different names for the number of samples."""
    monkeypatch.setattr(parallel, "world_size", lambda: 3)
    check_shards_nonempty(3)
    message = "^2 samples cannot be sharded over 3 processes: use fewer `devices` or more samples$"
    with pytest.raises(ConfigError, match=message):
        check_shards_nonempty(2)

"""Channel attention where features are rows, of which a sample has many."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from delta_transfer import estimate_attention
from delta_transfer.attention.estimators.ablation import ExactScorer
from delta_transfer.attention.estimators.gradient import FirstOrderScorer
from delta_transfer.errors import UserError
from delta_transfer.features.inputs import split
from delta_transfer.features.probe import LinearProbe
from tests import reference
from tests.rows import graph_net, some_rows

TAPS = ("layers.0", "layers.2", "pool")
SIZES = (3, 1, 5, 2, 4, 6, 2)


def data(sizes=SIZES):
    inputs = some_rows(sizes)
    return dataclasses.replace(inputs, x=inputs.x.double()), torch.arange(len(sizes)) % 3


def network():
    return graph_net().double().requires_grad_(False)


REFERENCES = {FirstOrderScorer: reference.gradient_scores, ExactScorer: reference.exact_scores}


@pytest.mark.parametrize("scorer", REFERENCES)
def test_scores_are_those_of_each_graph_by_itself(scorer, caplog):
    net, (inputs, targets) = network(), data()
    seen = []
    score = scorer(net, taps=TAPS, loss=F.cross_entropy)
    found = score(inputs, targets, progress=seen.append)
    for tap in TAPS:
        for i in range(len(inputs)):
            one = inputs[i : i + 1], targets[i : i + 1]
            expected = REFERENCES[scorer](net, *one, tap, 1, F.cross_entropy)
            assert found.scores[tap][i].tolist() == pytest.approx(expected, abs=1e-12)
    assert sum(seen) == sum(scores.numel() for scores in found.scores.values())
    assert found.features["layers.0"].shape == (sum(SIZES), 5)
    assert found.features["pool"].shape == (len(SIZES), 6)
    assert not caplog.records  # that inputs are no tensors is no news


@pytest.mark.parametrize("scorer", [FirstOrderScorer])
def test_rows_of_nothing_known_are_refused(scorer):
    net, (inputs, targets) = network(), data()
    net.layers[0].register_forward_hook(lambda module, given, output: output[:-1])
    net.layers[1].register_forward_pre_hook(
        lambda module, given: (torch.cat([given[0], given[0][-1:]]), given[1])
    )
    with pytest.raises(UserError, match=r"tap 'layers\.0' .*\(22, 5\)"):
        scorer(net, taps=["layers.0"], loss=F.cross_entropy)(inputs, targets)


def probe():
    generator = torch.Generator().manual_seed(0)
    return LinearProbe(
        torch.randn(3, 6, generator=generator).double(),
        torch.randn(3, generator=generator).double(),
        1.0,
    )


def estimate(method, *, size=3, sizes=SIZES, **options):
    inputs, targets = data(sizes)
    loader = list(zip(split(inputs, size), split(targets, size), strict=True))
    return estimate_attention(
        graph_net().double(), loader, probe=probe(), taps=TAPS, estimator=method, **options
    )


def expected_scores(of, sizes=SIZES):
    net, head = network(), probe()
    net.head.weight.copy_(head.weight)
    net.head.bias.copy_(head.bias)
    return {tap: of(net, *data(sizes), tap, 1, F.cross_entropy) for tap in TAPS}


@pytest.mark.parametrize("method", ["gradient", "exact", "refined"])
def test_estimates_are_means_over_graphs(method):
    found = estimate(method)
    of = reference.gradient_scores if method == "gradient" else reference.exact_scores
    for tap, scores in expected_scores(of).items():  # of 7 graphs all are refined exactly
        assert found.scores[tap].tolist() == pytest.approx(scores, abs=1e-10)
    rows = FirstOrderScorer(network(), taps=TAPS, loss=F.cross_entropy)(*data()).features
    for tap in TAPS:
        variance = rows[tap].var(dim=0, correction=0).mean()
        assert found.variance[tap].item() == pytest.approx(variance.item())


@pytest.mark.parametrize("options", [{"size": 7}, {"devices": ["cpu", "cpu"]}])
@pytest.mark.parametrize("method", ["gradient", "exact", "refined"])
def test_neither_batches_nor_devices_change_an_estimate(method, options):
    plain, found = estimate(method), estimate(method, **options)
    for tap in TAPS:
        assert torch.allclose(found.scores[tap], plain.scores[tap], atol=1e-10)


def test_refined_scores_of_many_graphs_are_near_to_the_exact_ones():
    sizes = tuple(1 + i % 6 for i in range(80))
    found = estimate("refined", size=16, sizes=sizes)
    exact = estimate("exact", size=16, sizes=sizes)
    first = estimate("gradient", size=16, sizes=sizes)
    for tap in TAPS:
        errors = [(one.scores[tap] - exact.scores[tap]).norm() for one in (found, first)]
        assert 0 < errors[0] < 0.5 * errors[1]


def test_samples_that_are_drawn_are_graphs():
    found = estimate("gradient", samples=3)
    picked = torch.randperm(7, generator=torch.Generator().manual_seed(0))[:3].tolist()
    net, head = network(), probe()
    net.head.weight.copy_(head.weight)
    net.head.bias.copy_(head.bias)
    inputs, targets = data()
    singles = [
        reference.gradient_scores(
            net, inputs[i : i + 1], targets[i : i + 1], "layers.2", 1, F.cross_entropy
        )
        for i in picked
    ]
    expected = [sum(scores) / 3 for scores in zip(*singles, strict=True)]
    assert found.scores["layers.2"].tolist() == pytest.approx(expected, abs=1e-10)


def test_an_estimate_that_was_broken_off_knows_its_graphs_again(tmp_path, monkeypatch, caplog):
    from delta_transfer.attention.estimators import checkpoint

    monkeypatch.setattr(checkpoint, "WRITE_INTERVAL_S", 0.0)
    path, whole = tmp_path / "part", estimate("exact")

    def stop(done, total):
        if done >= 4 * 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate("exact", checkpoint_path=path, progress=stop)
    assert path.is_file()
    caplog.set_level("INFO")
    found = estimate("exact", checkpoint_path=path)
    assert "resuming after" in caplog.text
    for tap in TAPS:
        assert torch.equal(found.scores[tap], whole.scores[tap])
    with pytest.raises(KeyboardInterrupt):
        estimate("exact", checkpoint_path=path, progress=stop)
    estimate("exact", checkpoint_path=path, sizes=(*SIZES[:-1], 3)[::-1])
    assert "starting from scratch" in caplog.text

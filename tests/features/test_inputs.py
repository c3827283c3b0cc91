import pytest
import torch
from torch import nn

from delta_transfer import LDIFS, Delta, Regularizer
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.errors import UserError
from delta_transfer.features.inputs import concatenate, groups_at, groups_of, select, shard, split
from delta_transfer.features.probe import collect_features
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import Taps
from delta_transfer.methods import Step
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.training.accumulation import GradientAccumulation
from delta_transfer.training.inference import predict_dataloader
from tests.networks import moved
from tests.rows import Rows, graph_net, some_rows

TAPS = ("layers.0", "layers.2", "pool")
ROW_TAPS = TAPS[:2]


def features_of(net, inputs):
    with Taps(net, TAPS) as taps, torch.no_grad():
        net(inputs)
        return taps.features()


def per_graph(net, inputs):
    """Tap -> the features of each graph, run by itself: `[S, C]`."""
    found = [features_of(net, inputs[i : i + 1]) for i in range(len(inputs))]
    return {tap: [one[tap] for one in found] for tap in TAPS}


# -------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize("inputs", [torch.arange(12.0).reshape(4, 3), some_rows()])
def test_parts_are_the_whole_in_order(inputs):
    for parts in (split(inputs, 3), [shard(inputs, i, num_shards=3) for i in range(3)]):
        sizes = [len(part) for part in parts]
        assert sizes in ([3, 1], [2, 1, 1])
        again, whole = (getattr(i, "x", i) for i in (concatenate(parts), inputs))
        assert torch.equal(again, whole)


@pytest.mark.parametrize("which", [torch.tensor([3, 1]), torch.tensor([False, True, False, True])])
def test_rows_are_selected_as_tensors_are(which):
    inputs = some_rows()
    found = select(inputs, which)
    expected = [inputs[i : i + 1].x for i in torch.arange(4)[which].tolist()]
    assert torch.equal(found.x, torch.cat(expected))
    numbers = torch.arange(4.0)
    assert torch.equal(select(numbers, which), numbers[which])


def test_groups_are_for_rows_and_not_for_samples():
    groups = torch.tensor([0, 0, 1])
    rows, samples, maps = torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(2, 3, 4)
    assert groups_at("t", rows, groups, samples=2) is groups
    assert groups_at("t", samples, groups, samples=2) is None
    assert groups_at("t", maps, groups) is None
    assert groups_at("t", rows, None, samples=2) is None
    message = r"tap 't' .*\(7, 4\).* 3 rows .* 2 samples"
    with pytest.raises(UserError, match=message):
        groups_at("t", torch.zeros(7, 4), groups)
    with pytest.raises(UserError, match="3 rows"):  # a map with as many samples as there are rows
        groups_at("t", torch.zeros(3, 2, 4), groups)


# ------------------------------------------------------------------------------------ penalties


def attention(seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = dict(zip(TAPS, (5, 6, 6), strict=True))
    return ChannelAttention(
        scores={tap: torch.randn(width, generator=generator) for tap, width in widths.items()},
        variance={tap: torch.tensor(0.5 + i) for i, tap in enumerate(TAPS)},
        temperature=1.0,
        estimator="exact",
        samples=3,
        source="",
    )


def by_hand(now, then, weights, variance):
    """The mean over graphs of the mean over their nodes."""
    terms = [
        (weights * (a - b).square()).sum(dim=1).mean().item()
        for a, b in zip(now, then, strict=True)
    ]
    return 0.5 * sum(terms) / len(terms) / variance


@pytest.mark.parametrize("given", [False, True])
def test_delta_takes_the_mean_over_each_graph_and_pooled_features_as_they_are(given):
    source, inputs, found = graph_net(), some_rows(), attention()
    target = moved(source)
    with Regularizer(target, source, [Delta(found, strength=2.0)]) as regularizer:
        target(inputs)
        term = regularizer(inputs, groups=inputs.groups if given else None).total
    now, then = per_graph(target, inputs), per_graph(source, inputs)
    expected = [
        by_hand(now[tap], then[tap], found.attention[tap], found.variance[tap].item())
        for tap in TAPS
    ]
    assert term.item() == pytest.approx(2 * sum(expected) / 3, rel=1e-4)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_official_formula_divides_by_the_nodes_of_each_graph(weighed):
    source, inputs, found = graph_net(), some_rows(), attention()
    target = moved(source)
    penalty = (
        Delta.official(found, strength=0.1) if weighed else Delta.official(taps=TAPS, strength=0.1)
    )
    with Regularizer(target, source, [penalty]) as regularizer:
        target(inputs)
        term = regularizer(inputs).total
    now, then = per_graph(target, inputs), per_graph(source, inputs)
    expected = 0.0
    for tap in TAPS:
        for a, b in zip(now[tap], then[tap], strict=True):
            squares = (a - b).square()
            if weighed:
                squares = squares * found.attention[tap] * a.shape[1] / len(a)
            expected += 0.1 * 0.5 * squares.sum().item()
    assert term.item() == pytest.approx(expected, rel=1e-4)


def test_ldifs_pools_each_graph():
    source, inputs = graph_net(), some_rows()
    target = moved(source)
    with Regularizer(target, source, [LDIFS(TAPS, strength=2.0)]) as regularizer:
        target(inputs)
        term = regularizer(inputs).total
    now, then = per_graph(target, inputs), per_graph(source, inputs)
    expected = 0.0
    for tap in TAPS:
        units = [
            [torch.nn.functional.normalize(one.mean(dim=0), dim=0) for one in side[tap]]
            for side in (now, then)
        ]
        distances = [(a - b).square().sum().item() for a, b in zip(*units, strict=True)]
        expected += sum(distances) / len(distances)
    assert term.item() == pytest.approx(2 * expected, rel=1e-4)


def test_a_tap_of_other_rows_is_refused():
    source, inputs = graph_net(), some_rows()
    features = {"edges": torch.zeros(9, 3)}
    penalty = Delta(taps=["edges"], strength=1.0)
    penalty.calibrate({"edges": torch.tensor(1.0)})
    step = Step(
        target=source,
        source=source,
        inputs=inputs,
        groups=inputs.groups,
        target_features=features,
        source_features=features,
    )
    with pytest.raises(UserError, match=r"tap 'edges' .*\(9, 3\)"):
        penalty(step)


@pytest.mark.parametrize("train", [False, True])
def test_omega_is_zero_at_the_start_in_train_mode(train):
    source, target, inputs = graph_net(), graph_net(), some_rows()
    regularizer = Regularizer(
        target,
        source,
        [Delta(taps=TAPS, strength=1.0)],
        batch_norm="train" if train else "frozen",
    )
    regularizer.calibrate([(inputs[:2], None), (inputs[2:], None)])
    with regularizer:
        target.train()
        target(inputs)
        value = regularizer(inputs).total.item()
    assert (value > 0.01) if train else value == 0


def test_calibration_is_the_variance_over_all_rows():
    source, inputs = graph_net(), some_rows()
    regularizer = Regularizer(moved(source), source, [Delta(taps=TAPS, strength=1.0)])
    regularizer.calibrate([inputs[:3], inputs[3:]])
    rows = features_of(source, inputs)
    expected = [rows[tap].var(dim=0, correction=0).mean() for tap in TAPS]
    assert torch.allclose(regularizer.penalties[0].variance, torch.stack(expected), rtol=1e-4)


# --------------------------------------------------------------------------- the rest of a fit


def test_auto_taps_are_the_layers_that_give_rows():
    assert auto_taps(graph_net(), example=some_rows()) == ("layers.0", "layers.1", "layers.2")

    class Picky(nn.Module):
        def forward(self, inputs):
            raise ValueError("no bonds")

    with pytest.raises(UserError, match=r"\(no bonds\).* taps"):
        auto_taps(Picky(), example=some_rows())


def test_the_parts_of_a_step_are_graphs():
    inputs, targets = some_rows(), torch.tensor([0, 1, 2, 0])
    parts = GradientAccumulation(3).split((inputs, targets))
    assert [(len(rows), labels.tolist(), share) for (rows, labels), share in parts] == [
        (2, [0, 1], 0.5),
        (2, [2, 0], 0.5),
    ]
    assert torch.equal(Rows.cat([rows for (rows, _), _ in parts]).x, inputs.x)


def test_features_and_probabilities_of_a_loader_of_graphs():
    net, inputs, labels = graph_net(), some_rows(), torch.tensor([0, 1, 2, 0])
    loader = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    features, found = collect_features(net, loader, horizontal_flip=True)
    assert torch.allclose(features[:, 0], features_of(net, inputs)["pool"], atol=1e-6)
    assert features.shape == (4, 1, 6)  # graphs have no mirror images
    assert torch.equal(found, labels)
    probabilities = predict_dataloader(net, loader, Multiclass())
    assert torch.allclose(probabilities, torch.softmax(net(inputs), dim=1), atol=1e-6)
    assert groups_of(torch.zeros(3)) is None

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import CoTuning, Regularizer, Step
from delta_transfer.errors import ConfigError
from delta_transfer.methods.co_tuning import category_relationship, source_temperature
from tests.methods.classifiers import (
    LABELS,
    classifier,
    log_softmax,
    logits_by_hand,
    make,
    relationship,
    rows,
    softmax,
    step,
)
from tests.methods.draws import draw
from tests.networks import conv_net


def test_co_tuning_is_the_formula():
    penalty, now = make("co_tuning"), rows(1)
    total = 0.0
    for logits, label in zip(logits_by_hand(classifier(), now), LABELS.tolist(), strict=True):
        wanted = relationship()[label].tolist()
        total -= math.fsum(a * b for a, b in zip(wanted, log_softmax(logits), strict=True))
    assert penalty(step(now, rows(2))).item() == pytest.approx(0.3 * total / 4)


def test_co_tuning_of_mixed_labels_is_the_mean_by_their_shares():
    penalty, now = make("co_tuning"), rows(1)
    given = step(now, rows(2))
    one, other = (
        penalty(dataclasses.replace(given, targets=labels)) for labels in (LABELS, LABELS.roll(1))
    )
    shares = torch.nn.functional.one_hot(torch.stack([LABELS, LABELS.roll(1)]), 3).float()
    mixed = 0.25 * shares[0] + 0.75 * shares[1]
    found = penalty(dataclasses.replace(given, targets=mixed))
    torch.testing.assert_close(found, 0.25 * one + 0.75 * other)


def test_the_strength_is_the_authors():
    assert CoTuning(classifier(), relationship(), head="fc").strength == 2.3


def test_errors():
    with pytest.raises(
        ConfigError, match=r"^CoTuning needs the labels: call regularizer\(inputs, "
    ):
        make("co_tuning")(Step(target=nn.Identity(), source=None, head_inputs={"fc": rows(1)}))
    with pytest.raises(ValueError, match=r"must be \[classes, 9\].*got \(3, 8\)"):
        CoTuning(classifier(), relationship()[:, :8], head="fc")
    with pytest.raises(ConfigError, match="unknown head 'fc2'"):
        Regularizer(conv_net(), None, [CoTuning(classifier(), relationship(), head="fc2")])


# --------------------------------------------------------------------------------- relationship


def relationship_by_hand(logits: Tensor, labels: list[int], classes: int, t: float) -> list:
    rows = [softmax(row, t) for row in logits.tolist()]
    found = []
    for y in range(classes):
        own = [row for row, label in zip(rows, labels, strict=True) if label == y] or rows
        found.append([math.fsum(column) / len(own) for column in zip(*own, strict=True)])
    return found


def test_the_relationship_is_the_mean_of_each_class():
    logits, labels = draw(7, 5), [0, 2, 2, 0, 3, 3, 3]  # none of class 1
    found = category_relationship(logits, torch.tensor(labels), num_outputs=4, temperature=1.5)
    expected = torch.tensor(relationship_by_hand(logits, labels, 4, 1.5), dtype=torch.float64)
    assert torch.allclose(found, expected)
    assert torch.allclose(found.sum(dim=1), torch.ones(4, dtype=torch.float64))


def surprise_by_hand(logits: Tensor, labels: list[int], t: float) -> float:
    """How little the other samples tell of the class of each."""
    rows, total = [softmax(row, t) for row in logits.tolist()], 0.0
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        chance = 0.0
        for s, p in enumerate(row):
            others = [rows[j][s] for j in range(len(rows)) if j != i]
            own = [rows[j][s] for j in range(len(rows)) if j != i and labels[j] == label]
            chance += p * math.fsum(own) / math.fsum(others)
        total -= math.log(chance)
    return total / len(rows)


def test_the_temperature_is_that_at_which_other_samples_tell_most():
    labels = [i % 3 for i in range(12)]
    logits = draw(12, 6) + 2 * torch.eye(6, dtype=torch.float64)[labels]
    found = source_temperature(logits, torch.tensor(labels))
    grid = [math.exp(i / 20) for i in range(-59, 60)]
    best = min(grid, key=lambda t: surprise_by_hand(logits, labels, t))
    assert found == pytest.approx(best, rel=0.06)
    assert 1 / 19 < found < 19
    assert source_temperature(3 * logits, torch.tensor(labels)) == pytest.approx(
        3 * found, rel=1e-3
    )


def test_a_class_with_one_image_does_not_upset_the_temperature():
    labels = [0, 0, 0, 1, 1, 1, 2]
    logits = draw(7, 6) + 2 * torch.eye(6, dtype=torch.float64)[labels]
    assert math.isfinite(source_temperature(logits, torch.tensor(labels)))

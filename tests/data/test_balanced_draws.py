from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from delta_transfer.data.samplers import (
    EpochSampler,
    balanced_weights,
    draw_balanced_indices,
    imbalance_ratio,
)

LABELS = [0] * 20 + [1] * 5 + [3] * 2 + [2] * 10


def test_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(4), y=np.array(LABELS))
    found = balanced_weights(LABELS, num_classes=4)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert float(found[LABELS].mean()) == pytest.approx(1.0)


def test_a_class_without_samples_does_not_count():
    found = balanced_weights([0, 0, 2], num_classes=4)
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=np.array([0, 0, 2]))
    assert found.tolist() == pytest.approx([expected[0], 1.0, expected[1], 1.0])


def test_imbalance_is_that_of_the_largest_and_the_smallest_class():
    assert imbalance_ratio(LABELS) == 10.0
    assert imbalance_ratio([3, 4]) == 1.0


def test_each_class_is_drawn_equally_often_and_each_sample_of_it_too():
    indices, times = draw_balanced_indices(LABELS, generator=torch.Generator().manual_seed(0))
    assert len(indices) == len(LABELS)
    counts = Counter(LABELS[i] for i in indices)
    assert sorted(counts.values()) == [9, 9, 9, 10]
    for label in range(4):
        drawn = Counter(i for i in indices if LABELS[i] == label)
        each = [drawn[i] for i in range(len(LABELS)) if LABELS[i] == label]
        assert max(each) - min(each) <= 1
    again = Counter(zip(indices, times, strict=True))
    assert max(again.values()) == 1  # each time counts
    assert Counter(indices) == {i: 1 + max(t for j, t in again if j == i) for i in set(indices)}


def test_which_class_has_one_more_is_drawn():
    draws = (
        draw_balanced_indices([0, 1], generator=torch.Generator().manual_seed(s)) for s in range(9)
    )
    assert {tuple(sorted(indices)) for indices, _ in draws} == {(0, 1)}
    generators = (torch.Generator().manual_seed(seed) for seed in range(9))
    most = {Counter(draw_balanced_indices([0, 1, 1], generator=g)[0])[0] for g in generators}
    assert most == {1, 2}


class TestSampler:
    def test_epochs_are_different_and_the_same_again(self):
        epochs = []
        for epoch in (0, 1, 0):
            sampler = EpochSampler(len(LABELS), seed=4, labels=LABELS)
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
            assert len(epochs[-1]) == len(sampler)
        assert epochs[0] == epochs[2] != epochs[1]
        assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]

    def test_no_two_draws_are_augmented_alike(self):
        sampler = EpochSampler(len(LABELS), seed=4, labels=LABELS)
        seen = []
        for epoch in range(30):
            sampler.set_epoch(epoch)
            seen += list(sampler)
        assert len(set(seen)) == len(seen)

    def test_it_goes_on_where_it_was_left(self):
        sampler = EpochSampler(len(LABELS), seed=4, labels=LABELS)
        sampler.set_epoch(2)
        whole = list(sampler)
        sampler.resume(2, num_done=11)
        assert list(sampler) == whole[11:]
        assert list(sampler) == whole

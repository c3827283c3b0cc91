import numpy as np
import pytest
import torch

from delta_transfer.attention.estimators.statistics import GROUPS, NUM_INFLUENTIAL, ScoreStatistics


def scores(count=37, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, generator=generator, dtype=torch.float64)


def measured(rows, sizes=None, positions=None) -> ScoreStatistics:
    statistics = ScoreStatistics()
    positions = torch.arange(len(rows)) if positions is None else positions
    sizes = sizes or [len(rows)]
    for some, places in zip(rows.split(sizes), positions.split(sizes), strict=True):
        statistics.update(some, indices=places)
    return statistics


def same(found: ScoreStatistics, expected: ScoreStatistics, tolerance=1e-12) -> bool:
    ours, theirs = found.state(), expected.state()
    return ours.keys() == theirs.keys() and all(
        torch.allclose(ours[name].double(), theirs[name].double(), atol=tolerance, rtol=tolerance)
        for name in ours
    )


def test_means_and_standard_errors_are_numpys():
    rows = scores()
    found = measured(rows)
    assert found.count == 37
    assert found.mean.tolist() == pytest.approx(rows.numpy().mean(axis=0).tolist(), rel=1e-12)
    errors = rows.numpy().std(axis=0, ddof=1) / np.sqrt(37)
    assert found.standard_errors.tolist() == pytest.approx(errors.tolist(), rel=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 37, [10, 10, 10, 7], [36, 1], [1, 36]], ids=str)
def test_the_batches_do_not_matter(sizes):
    rows = scores()
    assert same(measured(rows, sizes), measured(rows))


def test_the_order_matters_to_the_groups_alone():
    rows = scores()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    found, expected = measured(rows[order], positions=order), measured(rows)
    assert torch.allclose(found.mean, expected.mean, rtol=1e-12)
    assert torch.allclose(found.standard_errors, expected.standard_errors, rtol=1e-12)
    assert torch.equal(found.influential_samples, expected.influential_samples)


def test_a_large_mean_and_small_differences_in_float32():
    small = scores(4000).float()
    rows = 1e4 + small
    exact = rows.double().numpy()
    found = measured(rows, [13] * 307 + [9])
    assert found.mean.tolist() == pytest.approx(exact.mean(axis=0).tolist(), rel=1e-14)
    errors = exact.std(axis=0, ddof=1) / np.sqrt(4000)
    assert found.standard_errors.tolist() == pytest.approx(errors.tolist(), rel=1e-9)


def test_groups_are_every_tenth_sample():
    rows = scores()
    found = measured(rows, [8] * 4 + [5]).leave_one_group_out_means
    assert found.shape == (GROUPS, 5)
    for group in range(GROUPS):
        kept = [row for i, row in enumerate(rows.numpy()) if i % GROUPS != group]
        assert found[group].tolist() == pytest.approx(np.mean(kept, axis=0).tolist(), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_fewer_samples_than_groups_are_a_group_each(count):
    rows = scores(count)
    found = measured(rows, [1] * count).leave_one_group_out_means
    expected = [np.delete(rows.numpy(), i, axis=0).mean(axis=0).tolist() for i in range(count)]
    assert found.flatten().tolist() == pytest.approx(np.ravel(expected).tolist(), rel=1e-12)


def test_of_one_sample_no_error_is_known():
    found = measured(scores(1))
    assert found.standard_errors.isnan().all()
    assert found.leave_one_group_out_means.shape == (0, 5)
    assert found.influential_samples.tolist() == [[0]] * 5
    assert ScoreStatistics().leave_one_group_out_means.shape[0] == 0


@pytest.mark.parametrize("sizes", [[37], [1] * 37, [3] * 12 + [1]], ids=["one", "single", "threes"])
def test_drivers_are_where_the_loss_grows_most(sizes):
    rows = scores()
    positions = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:37]
    found = measured(rows, sizes, positions).influential_samples
    assert found.dtype == torch.int64
    expected = positions.numpy()[np.argsort(-rows.numpy(), axis=0)[:NUM_INFLUENTIAL].T]
    assert found.tolist() == expected.tolist()


def test_of_equal_samples_the_first_are_drivers():
    rows = torch.zeros(9, 2)
    for sizes in ([9], [2] * 4 + [1], [1] * 9):
        assert measured(rows, sizes).influential_samples.tolist() == [[0, 1, 2, 3]] * 2
    assert measured(rows[:3]).influential_samples.tolist() == [[0, 1, 2]] * 2


def test_what_is_read_can_be_changed():
    found = measured(scores())
    expected = found.mean.tolist()
    found.mean.zero_()
    found.state()["mean"].zero_()
    assert found.mean.tolist() == expected


@pytest.mark.parametrize("cut", [0, 1, 20, 37])
def test_a_state_goes_on_as_if_nothing_had_been(cut):
    rows, expected = scores(), ScoreStatistics()
    found = measured(rows[:cut]) if cut else ScoreStatistics()
    if cut:
        expected.update(rows[:cut], indices=torch.arange(cut))
    found = ScoreStatistics.from_state(found.state())
    for statistics in (found, expected):
        if cut < 37:
            statistics.update(rows[cut:], indices=torch.arange(cut, 37))
    ours, theirs = found.state(), expected.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(ours[name].dtype == theirs[name].dtype for name in theirs)


def test_scores_with_a_graph_and_from_inference_mode_are_taken_in():
    with torch.inference_mode():
        rows = scores() + 0
    found = measured(rows)
    found.update(scores(seed=1).requires_grad_(), indices=torch.arange(37))
    assert not found.mean.requires_grad
    both = torch.cat([scores(), scores(seed=1)])
    assert torch.allclose(found.mean, both.mean(dim=0))

import pytest
import torch

from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.attention.estimators.sampling import (
    BASE,
    WARMUP_SAMPLES,
    Reservoir,
    inclusion_probabilities,
)


def stream(count=100, seed=0, channels=(6, 3)):
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.randn(count, 1, generator=generator, dtype=torch.float64))
    return {
        f"tap{i}": size * torch.randn(count, width, generator=generator, dtype=torch.float64)
        for i, width in enumerate(channels)
    }


def filled(scores, *, limit, seed=0, size=100) -> Reservoir:
    reservoir = Reservoir(limit, seed=seed)
    count = len(next(iter(scores.values())))
    for start in range(0, count, size):
        stop = min(start + size, count)
        batch = Batch(
            inputs=torch.arange(start, stop).float().unsqueeze(1),
            targets=torch.arange(start, stop),
            indices=torch.arange(start, stop) + 1000,
        )
        reservoir.add(batch, {tap: rows[start:stop] for tap, rows in scores.items()})
    return reservoir


def sizes_of(scores) -> torch.Tensor:
    """One by one: root mean square over channels, relative to the first samples', plus 0.3."""
    count = len(next(iter(scores.values())))
    sizes = []
    for i in range(count):
        parts = []
        for rows in scores.values():
            norms = [sum(v * v for v in row) / len(row) for row in rows.tolist()]
            usual = sum(n**0.5 for n in norms[:WARMUP_SAMPLES]) / len(norms[:WARMUP_SAMPLES])
            parts.append(norms[i] ** 0.5 / usual)
        sizes.append(sum(parts) / len(parts) + BASE)
    return torch.tensor(sizes, dtype=torch.float64)


# ------------------------------------------------------------------------------ probabilities


@pytest.mark.parametrize("count", [1, 3, 10, 29, 30])
def test_probabilities_add_up_and_go_with_the_sizes_up_to_one(count):
    generator = torch.Generator().manual_seed(count)
    sizes = torch.exp(2 * torch.randn(30, generator=generator, dtype=torch.float64))
    found = inclusion_probabilities(sizes, count)
    assert found.sum().item() == pytest.approx(count)
    assert (found > 0).all()
    assert (found <= 1 + 1e-12).all()
    below = found < 1 - 1e-9
    ratios = (found / sizes)[below]
    if below.any():
        assert ratios.max().item() == pytest.approx(ratios.min().item())
        # What is sure to be drawn would otherwise be drawn more than once.
        assert (ratios.mean() * sizes[~below] >= 1 - 1e-9).all()


def test_equal_sizes_have_equal_probabilities():
    found = inclusion_probabilities(torch.full((8,), 5.0), 2)
    assert found.tolist() == pytest.approx([0.25] * 8)
    assert inclusion_probabilities(torch.tensor([1e9, 1.0, 1e-9]), 3).tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------- draws


def test_what_is_drawn_comes_with_its_scores_place_and_probability():
    scores = stream()
    kept, probabilities = filled(scores, limit=12, size=7).draw(9)
    assert len(kept) == len(probabilities) == 9
    places = [one.index for one in kept]
    assert places == sorted(set(places))
    for one in kept:
        assert one.sample.inputs.tolist() == [[one.index]]
        assert one.sample.targets.tolist() == [one.index]
        assert one.sample.indices.tolist() == [one.index + 1000]
        for tap, rows in scores.items():
            assert torch.equal(one.scores[tap], rows[one.index])
    expected = inclusion_probabilities(sizes_of(scores), 9)[places]
    assert torch.allclose(probabilities, expected, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 31, 32, 33, 64])
def test_the_batches_do_not_matter(size):
    scores = stream()
    expected, chances = filled(scores, limit=12).draw(12)
    found, probabilities = filled(scores, limit=12, size=size).draw(12)
    assert [one.index for one in found] == [one.index for one in expected]
    assert torch.allclose(probabilities, chances)


def test_fewer_are_among_more_and_a_larger_limit_changes_nothing():
    scores = stream()

    def drawn(limit, count):
        return {one.index for one in filled(scores, limit=limit).draw(count)[0]}

    assert drawn(12, 5) < drawn(12, 9) < drawn(12, 12)
    assert drawn(30, 9) == drawn(12, 9) == drawn(9, 9)
    assert len(drawn(200, 200)) == 100


def test_the_seed_decides():
    scores = stream()
    draws = {tuple(one.index for one in filled(scores, limit=8, seed=s).draw(8)[0]) for s in (0, 1)}
    assert len(draws) == 2
    again = filled(scores, limit=8, seed=1).draw(8)[0]
    assert tuple(one.index for one in again) in draws


@pytest.mark.slow
def test_samples_are_drawn_about_as_often_as_their_probability_says():
    scores, draws = stream(60), 3000
    counts = torch.zeros(60)
    for seed in range(draws):
        for one in filled(scores, limit=6, seed=seed, size=60).draw(6)[0]:
            counts[one.index] += 1
    expected = inclusion_probabilities(sizes_of(scores), 6)
    deviation = (expected * (1 - expected) / draws).sqrt()
    # Four standard deviations of chance, and 5% for what sequential Poisson sampling is off by.
    assert ((counts / draws - expected).abs() < 4 * deviation + 0.05 * expected).all()
    assert counts.max() > 3 * counts.min()  # and not all equally


def test_a_few_large_samples_and_taps_without_influence():
    scores = stream(40)
    scores["tap0"][5] *= 1e6
    scores["tap1"].zero_()
    kept, probabilities = filled(scores, limit=4, size=9).draw(4)
    assert probabilities.isfinite().all()
    assert 5 in [one.index for one in kept]
    nothing = {tap: torch.zeros_like(rows) for tap, rows in scores.items()}
    _, probabilities = filled(nothing, limit=4, size=9).draw(4)
    assert probabilities.tolist() == pytest.approx([0.1] * 4)


def test_fewer_samples_than_the_first_ones():
    for count in (1, 3, WARMUP_SAMPLES - 1, WARMUP_SAMPLES):
        kept, probabilities = filled(stream(count), limit=32).draw(count)
        assert [one.index for one in kept] == list(range(count))
        assert probabilities.tolist() == [1] * count


def test_kept_samples_do_not_hold_their_batches():
    scores = stream(64)
    reservoir = filled(scores, limit=2, size=32)
    kept, _ = reservoir.draw(2)
    for one in kept:
        assert one.sample.inputs.untyped_storage().nbytes() == 4
        assert one.scores["tap0"].untyped_storage().nbytes() == 6 * 8

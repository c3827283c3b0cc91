import functools
import math

import pytest
import torch
from scipy.stats import spearmanr

from delta_transfer.attention import estimate_attention
from delta_transfer.attention.estimators import averaging
from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.attention.estimators.refined import combine, num_exact_samples
from delta_transfer.attention.estimators.sampling import Reservoir
from delta_transfer.errors import UserError
from delta_transfer.features.probe import collect_features, fit_probe
from tests import reference
from tests.attention.scorers import OneByOne, batches, curved, patterns

TAPS = ("early", "late")


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch):
    monkeypatch.setattr(averaging, "ExactScorer", OneByOne)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------ combine


def combined(exact, first, probabilities, everything=None, samples=None):
    everything = first if everything is None else everything
    return combine(
        exact,
        first,
        probabilities,
        mean=everything.mean(dim=0),
        mean_absolute=everything.abs().mean(dim=0),
        samples=len(everything) if samples is None else samples,
    )


def test_the_formula_is_the_reference():
    for seed in range(5):
        everything = draw(50, 7, seed=seed)
        first = everything[:9]
        noise = draw(9, 7, seed=seed + 100)
        exact = 0.7 * first + 0.4 * first.abs() + 0.2 * noise + 0.1 * torch.arange(7.0)
        probabilities = torch.rand(9, generator=torch.Generator().manual_seed(seed)).double()
        scores, errors = combined(exact, first, probabilities, everything)
        slow = reference.refined(
            exact.tolist(),
            first.tolist(),
            probabilities.tolist(),
            everything.mean(dim=0).tolist(),
            everything.abs().mean(dim=0).tolist(),
            50,
        )
        assert scores.tolist() == pytest.approx(slow[0], rel=1e-9)
        assert errors.tolist() == pytest.approx(slow[1], rel=1e-9)


def test_scores_that_the_model_explains_are_found_whatever_is_drawn():
    everything = draw(60, 9)
    exact = 1.3 * everything - 0.4 * everything.abs()
    for seed in range(3):
        some = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:8]
        found, errors = combined(
            exact[some], everything[some], torch.full((8,), 8 / 60).double(), everything
        )
        assert torch.allclose(found, exact.mean(dim=0), atol=1e-9)
        # What is left is the draw of the 60: within a chance of 8.
        spread = exact.var(dim=0).mean().sqrt() / math.sqrt(60)
        assert errors.mean().item() == pytest.approx(spread.item(), rel=0.5)


def test_all_samples_give_their_mean_and_its_standard_error():
    exact, first = draw(12, 6), draw(12, 6, seed=1)
    scores, errors = combined(exact, first, torch.ones(12))
    assert torch.allclose(scores, exact.mean(dim=0), atol=1e-12)
    assert torch.allclose(errors, exact.std(dim=0) / math.sqrt(12), atol=1e-12)


def test_scores_are_not_biased_and_their_errors_are_about_right():
    """Over many draws: of a channel, and of the errors that go with it."""
    count, width, few = 200, 12, 16
    size = torch.exp(0.7 * draw(count, 1, seed=5))
    first = size * draw(count, width, seed=1)
    offsets = 2 * draw(width, seed=2)  # which the model does not know of
    exact = 0.8 * first + 0.3 * first.abs() + size * (offsets + draw(count, width, seed=3))
    truth, found, errors = exact.mean(dim=0), [], []
    for seed in range(300):
        reservoir = Reservoir(few, seed=seed)
        x = torch.zeros(count, 1)
        batch = Batch(inputs=x, targets=x, indices=torch.arange(count))
        reservoir.add(batch, {"tap": first})
        kept, probabilities = reservoir.draw(few)
        some = [one.index for one in kept]
        scores, error = combined(exact[some], first[some], probabilities, first, samples=10**9)
        found.append(scores)
        errors.append(error)
    found, errors = torch.stack(found), torch.stack(errors)
    deviation = found.std(dim=0)
    bias = found.mean(dim=0) - truth
    assert (bias.abs() < 0.35 * deviation).all()
    assert bias.norm() < 0.1 * (truth - truth.mean()).norm()
    ratio = errors.square().mean().sqrt() / (found - truth).square().mean().sqrt()
    assert 0.8 < ratio < 1.25


def test_residuals_that_are_noise_are_shrunk_away():
    everything = draw(400, 30)
    exact = everything + 3 * draw(400, 30, seed=1)
    truth, far, near = everything.mean(dim=0), 0.0, 0.0
    for seed in range(10):
        some = torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:10]
        first, probabilities = everything[some], torch.full((10,), 10 / 400).double()
        found, _ = combined(exact[some], first, probabilities, everything)
        plain = truth + (exact[some] - first).mean(dim=0)
        near += (found - truth - (found - truth).mean()).norm().item()
        far += (plain - truth - (plain - truth).mean()).norm().item()
    assert near < 0.5 * far


@pytest.mark.parametrize(
    ("exact", "first"),
    [
        (torch.zeros(6, 4), torch.zeros(6, 4)),
        (torch.full((6, 4), 3.0), torch.zeros(6, 4)),
        (torch.full((6, 4), 3.0), torch.ones(6, 4)),
        (draw(6, 4), torch.zeros(6, 4)),
        (draw(6, 4), draw(6, 4, seed=1).abs()),  # G and |G| are one
        (draw(6, 4), -draw(6, 4, seed=1).abs()),
        (draw(6, 4), 1e-200 * draw(6, 4, seed=1)),
        (draw(6, 1), draw(6, 1, seed=1)),
        (draw(2, 4), draw(2, 4, seed=1)),
    ],
    ids=["nothing", "equal", "same", "no slope", "up", "down", "tiny", "channel", "two"],
)
@pytest.mark.parametrize("drawn", ["all", "some"])
def test_degenerate_scores_are_finite(exact, first, drawn):
    probabilities = torch.full((len(exact),), 1.0 if drawn == "all" else 0.3).double()
    scores, errors = combined(exact, first, probabilities)
    assert scores.isfinite().all()
    assert errors.isfinite().all()
    assert (errors >= 0).all()
    if drawn == "all":
        assert torch.allclose(scores, exact.double().mean(dim=0), atol=1e-6)
    if exact.var() == 0:
        assert torch.allclose(scores, exact.double()[0], atol=1e-9)


def test_of_one_sample_the_errors_are_not_known():
    scores, errors = combined(draw(1, 4), draw(1, 4, seed=1), torch.ones(1))
    assert torch.allclose(scores, draw(1, 4)[0])
    assert errors.isnan().all()


def test_how_many_are_scored_exactly():
    assert [num_exact_samples(n, channels=100) for n in (1, 8, 9, 31, 33, 100, 128, 10**6)] == [
        1, 8, 8, 8, 9, 25, 32, 64,
    ]  # fmt: skip
    assert num_exact_samples(None, channels=100) == 64
    assert [num_exact_samples(1000, channels=c) for c in (1, 500, 1000, 3840, 10**6)] == [
        64, 64, 32, 16, 16,
    ]  # fmt: skip


# ---------------------------------------------------------------------------------- estimates


def probe_of(net, data):
    return fit_probe(*collect_features(net, batches(*data)), num_outputs=4, strengths=[1e-2])


def estimated(method, net, data, *, size=16, **options):
    probe = options.pop("probe", None) or probe_of(net, data)
    loader = batches(*data, size)
    return estimate_attention(net, loader, taps=TAPS, estimator=method, probe=probe, **options)


@functools.cache
def case(seed):
    """A network, its data and their exact scores."""
    net, data = curved(seed), patterns(96, seed)
    return net, data, estimated("exact", net, data)


def agreement(found, exact, tap) -> float:
    return spearmanr(found.scores[tap], exact.scores[tap]).statistic


@pytest.mark.slow
def test_it_is_nearer_to_exact_than_first_order():
    gained, refined, distance = [], [], {"gradient": 0.0, "refined": 0.0}
    for seed in range(3):
        net, data, exact = case(seed)
        first = estimated("gradient", net, data)
        found = [estimated("refined", net, data, seed=draw) for draw in range(2)]
        for tap in TAPS:
            mean = sum(agreement(one, exact, tap) for one in found) / len(found)
            refined.append(mean)
            gained.append(mean - agreement(first, exact, tap))
            for method, some in (("gradient", [first]), ("refined", found)):
                for one in some:
                    difference = one.attention[tap] - exact.attention[tap]
                    distance[method] += difference.norm().item() / len(some)
    assert min(refined) > 0.9
    assert sum(gained) / len(gained) > 0.3
    assert distance["refined"] < 0.4 * distance["gradient"]


def test_the_errors_cover_the_distance_to_the_exact_scores():
    covered, errors, distances = [], 0.0, 0.0
    for seed in range(3):
        net, data, exact = case(seed)
        for draws in range(3):
            found = estimated("refined", net, data, seed=draws)
            for tap in TAPS:
                difference = (found.scores[tap] - exact.scores[tap]).abs()
                covered.append((difference < 2 * found.standard_errors[tap]).float().mean())
                attention = found.attention[tap] - exact.attention[tap]
                uniform = found.attention[tap] - 1 / len(difference)
                distances += (attention.norm() / uniform.norm()).item()
                errors += found.uncertainty[tap]
                assert (found.standard_errors[tap] > 0).all()
    assert sum(covered) / len(covered) > 0.85
    assert 0.7 < errors / distances < 4


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_of_few_samples_all_are_scored_exactly(count):
    net, data = curved().double(), patterns(count)
    data = data[0].double(), data[1]
    probe = probe_of(net, (patterns()[0].double(), patterns()[1]))
    found, exact = (
        estimated(method, net, data, size=3, probe=probe) for method in ("refined", "exact")
    )
    for tap in TAPS:
        assert torch.allclose(found.scores[tap], exact.scores[tap], rtol=1e-6, atol=1e-12)
        assert torch.allclose(
            found.standard_errors[tap],
            exact.standard_errors[tap],
            rtol=1e-6,
            atol=1e-12,
            equal_nan=True,
        )
    assert found.samples == count


def test_few_samples_in_any_order_are_the_same():
    net, (x, y) = curved().double(), patterns(8)
    probe = probe_of(net, (patterns()[0].double(), patterns()[1]))
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    one = estimated("refined", net, (x.double(), y), probe=probe)
    other = estimated("refined", net, (x.double()[order], y[order]), probe=probe)
    for tap in TAPS:
        assert torch.allclose(one.scores[tap], other.scores[tap], atol=1e-10)
        assert torch.equal(order[other.influential_samples[tap]], one.influential_samples[tap])


@pytest.mark.parametrize("size", [1, 7, 50, 100])
def test_the_batches_do_not_matter(size):
    net, (x, y) = curved().double(), patterns(60)
    data = x.double(), y
    probe = probe_of(net, data)
    expected = estimated("refined", net, data, probe=probe)
    found = estimated("refined", net, data, probe=probe, size=size)
    for tap in TAPS:
        assert torch.allclose(found.scores[tap], expected.scores[tap], rtol=1e-8, atol=1e-12)
        assert torch.allclose(
            found.standard_errors[tap], expected.standard_errors[tap], rtol=1e-8, atol=1e-12
        )
        assert torch.equal(found.influential_samples[tap], expected.influential_samples[tap])
        assert found.uncertainty[tap] == pytest.approx(expected.uncertainty[tap], rel=1e-6)


def test_the_seed_decides_what_is_drawn():
    net, data = curved(), patterns(60)
    probe = probe_of(net, data)
    one, again, other = (
        estimated("refined", net, data, probe=probe, seed=seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one.scores[tap], again.scores[tap]) for tap in TAPS)
    assert one.uncertainty == again.uncertainty
    assert not torch.equal(one.scores["early"], other.scores["early"])


def test_drivers_and_variance_are_those_of_first_order():
    net, data = curved(), patterns(60)
    probe = probe_of(net, data)
    found, first = (
        estimated(method, net, data, probe=probe, samples=40) for method in ("refined", "gradient")
    )
    for tap in TAPS:
        assert torch.equal(found.influential_samples[tap], first.influential_samples[tap])
        assert torch.equal(found.variance[tap], first.variance[tap])
    assert found.samples == 40


def test_the_loader_is_run_through_once_and_a_few_samples_once_more(monkeypatch):
    net, data = curved(), patterns(60)
    probe, seen, runs = probe_of(net, data), [], []

    class Watched(OneByOne):
        def __call__(self, inputs, targets, *, progress=None):
            seen.extend(inputs)
            return super().__call__(inputs, targets, progress=progress)

    class Loader:
        def __iter__(self):
            runs.append(1)
            return iter(batches(*data))

    monkeypatch.setattr(averaging, "ExactScorer", Watched)
    estimate_attention(net, Loader(), probe=probe, taps=TAPS, estimator="refined")
    assert len(runs) == 1
    assert len(seen) == 15
    images = {image.numpy().tobytes() for image in data[0]}
    drawn = {image.contiguous().numpy().tobytes() for image in seen}
    assert len(drawn) == 15
    assert drawn <= images


def test_images_of_several_sizes():
    net, (x, y) = curved(), patterns(60)
    loader = batches(x[:30], y[:30], 10) + batches(x[30:, :, :7, :6], y[30:], 10)
    found = estimate_attention(net, loader, probe=probe_of(net, (x, y)), taps=TAPS)
    assert found.samples == 60
    assert all(scores.isfinite().all() for scores in found.scores.values())


def test_progress_is_told_in_units_that_take_about_as_long():
    net, data, seen = curved(), patterns(60), []
    estimated("refined", net, data, progress=lambda done, total: seen.append((done, total)))
    total = 60 * 60 + 15 * 56
    assert seen[0] == (16 * 60, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.parametrize("method", ["gradient", "refined", "exact"])
def test_scores_that_are_no_numbers_are_an_error(method):
    net, (x, y) = curved(), patterns(20)
    probe = probe_of(net, (x, y))
    x[7] = math.nan
    with pytest.raises(UserError, match="channel scores of tap 'early' are not finite"):
        estimated(method, net, (x, y), probe=probe)

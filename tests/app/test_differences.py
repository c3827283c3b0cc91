"""Differences to the pretrained network, place by place and in their unit."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from delta_transfer.app.differences import measure_variance
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.features.taps import Taps
from delta_transfer.functional import feature_distance, flatten_positions
from tests.app.asking import both_features, inputs_of, opened, page_text, source
from tests.networks import conv_net


def test_they_are_the_distance_of_delta_place_by_place(explainer, image, moved):
    variance = ChannelAttention.load(moved / "attention.safetensors").variance
    found = explainer.explain(image, name="x").differences
    assert [one.tap for one in found] == ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    features = both_features(explainer, image)
    for one in found:
        now, was = features[one.tap]
        v = variance[one.tap]
        expected = feature_distance(now[None], was[None], variance=v)
        assert one.mean == pytest.approx(float(expected), rel=0.02)
        assert one.mean > 1e-3
        if one.tap == "blocks.6":
            assert one.values is None  # a single position
            continue
        side = one.values.shape[0]
        assert one.values.numel() == len(now)
        for y in range(side):
            for x in range(side):
                place = (now[side * y + x] - was[side * y + x]).square().mean() / v / 2
                assert float(one.values[y, x]) == pytest.approx(float(place), rel=0.1)


def test_without_attention_the_unit_is_measured_on_training_images(
    moved, tmp_path, images, explainer
):
    run = shutil.copytree(moved, tmp_path / "run")
    (run / "attention.safetensors").unlink()
    found = opened(run).source.variance
    network, rows = source(), {tap: [] for tap in explainer.taps}
    for file in sorted((images / "train").glob("*/*.png")):
        image = Image.open(file).convert("RGB")
        with Taps(network, list(rows)) as taps, torch.no_grad():
            network(inputs_of(explainer, image))
            for tap, features in taps.features().items():
                rows[tap].append(features[0].double())
    for tap, parts in rows.items():
        expected = torch.cat(parts).var(dim=0, correction=0).mean()
        assert float(found[tap]) == pytest.approx(float(expected), rel=0.02)


def test_of_no_images_there_is_no_unit():
    inputs = torch.randn(4, 3, 16, 16)
    found = measure_variance(conv_net(), [inputs[:1], inputs[1:]], {"norm2": 1})
    with Taps(conv_net(), ["norm2"]) as taps, torch.no_grad():
        taps.record(inputs)
        rows = flatten_positions(taps.outputs()["norm2"], 1).flatten(0, 1)
    torch.testing.assert_close(found["norm2"], rows.var(dim=0, correction=0).mean())


def test_an_unchanged_network_has_no_differences(finished, tmp_path, image):
    run = shutil.copytree(finished.folder, tmp_path / "run")
    state = {k: v for k, v in source().state_dict().items() if "classifier" not in k}
    file = run / "model" / "model.safetensors"
    save_file({**load_file(file), **state}, file, metadata={"format": "pt"})
    explainer = opened(run, examples=0)
    assert [one.mean for one in explainer.explain(image, name="x").differences] == [0.0] * 4
    assert "The features are identical at all taps" in page_text(explainer, image)

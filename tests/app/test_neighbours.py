"""The nearest training images against an exhaustive search."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from delta_transfer.app.neighbours import NeighbourIndex
from delta_transfer.data.task import Split
from tests.app.asking import changed, inputs_of, opened, page_text, target_of
from tests.run_folders import CLASSES, SPLITS


def test_they_are_the_nearest_by_exhaustive_search(explainer, image, images):
    network = target_of(explainer)

    def features(image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            maps = network.forward_features(inputs_of(explainer, image))
            return network.forward_head(maps, pre_logits=True)[0].numpy()

    own = features(image)
    slow = []
    for file in sorted((images / "train").glob("*/*.png")):
        other = features(Image.open(file).convert("RGB"))
        cosine = float(own @ other / np.linalg.norm(own) / np.linalg.norm(other))
        slow.append((cosine, file))
    slow.sort(reverse=True)
    found = explainer.explain(image, name="x").neighbours
    assert len(slow) == len(explainer.neighbours) == sum(SPLITS["train"])
    assert [one.cosine for one in found] == pytest.approx([c for c, _ in slow[:5]], abs=2e-3)
    for one, (_, file) in zip(found[:2], slow, strict=False):
        assert one.path.endswith(f"{one.label}/{file.name}")
        assert one.label == file.parent.name
        assert one.image.tobytes() == Image.open(file).convert("RGB").tobytes()


def test_some_from_all_over_are_taken_where_there_are_many(moved):
    found = opened(moved, examples=6).neighbours
    labels = [one.label for one in found.nearest(torch.ones(1280), 10)]
    assert len(found) == len(labels) == 6
    assert sorted(labels) == sorted(2 * CLASSES)


def test_unreadable_images_are_left_out_and_later_ones_reported(moved, images, tmp_path, image):
    data = shutil.copytree(images, tmp_path / "data")
    (data / "train" / "rings" / "0.png").write_text("Dear Sir")
    explainer = opened(changed(moved, tmp_path / "run", data=data))
    assert len(explainer.neighbours) == sum(SPLITS["train"]) - 1
    shutil.rmtree(data)
    found = explainer.explain(image, name="x").neighbours
    assert [one.image for one in found] == [None] * 5
    text = page_text(explainer, image)
    assert text.count("The image can no longer be read.") == 5


def test_cosines_of_one_row_are_those_of_torch():
    rows = torch.randn(7, 4)
    split = Split(tuple("abcdefg"), (0, 1) * 3 + (0,), lambda path: Image.new("RGB", (1, 1)))
    row = torch.randn(4)
    found = NeighbourIndex(split, rows, ("x", "y")).nearest(row, 3)
    cosines = F.cosine_similarity(rows, row[None])
    best = cosines.topk(3)
    assert [one.path for one in found] == ["abcdefg"[i] for i in best.indices]
    assert [one.label for one in found] == ["xy"[i % 2] for i in best.indices]
    assert [one.cosine for one in found] == pytest.approx(best.values.tolist())

"""What a run makes of an image: answers, class map, nearest training images, differences."""

import dataclasses
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from delta_transfer.app import class_map
from delta_transfer.app.class_map import ClassMap
from delta_transfer.app.differences import FeatureDifference, Source, differences
from delta_transfer.app.neighbours import Neighbour, NeighbourIndex
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import Split
from delta_transfer.inference.predictor import Predictor
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.training.loaders import Dataloaders

NUM_NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a run makes of an image.

    Args:
        name: of the image.
        pixels: what the network sees of it, bytes `[3, S, S]`.
        probabilities: class -> probability, the most probable first.
        class_name: of which class the map is.
        class_map: None where no place speaks for the class, or the network has no positions.
        neighbours: nearest first; empty where there are none to compare with.
        differences: of each tap; empty where the pretrained network cannot be had.
    """

    name: str
    pixels: Tensor
    probabilities: dict[str, float]
    class_name: str
    class_map: ClassMap | None
    neighbours: Sequence[Neighbour]
    differences: Sequence[FeatureDifference]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explainer:
    """The network of a finished run, and what there is to explain its answers by.

    Not for several threads at a time.

    Args:
        predictor: the run.
        result: its figures.
        loader_config: options by which single images are prepared.
        taps: where features are compared -> where their channels are.
        neighbours: training images, or why there are none.
        source: the pretrained network, or why there is none.
    """

    predictor: Predictor
    result: RunResult
    loader_config: TrainConfig
    taps: Mapping[str, int]
    neighbours: NeighbourIndex | str
    source: Source | str

    def explain(
        self, image: Image.Image, *, name: str, class_index: int | None = None
    ) -> Explanation:
        """What the run makes of an image.

        Args:
            image: in RGB.
            name: what it is called.
            class_index: of which class there is to be a map; the most probable if None.
        """
        predictor, backbone = self.predictor, self.predictor.backbone
        answers = predictor.predict_sample(image, name=name).values
        index = predictor.classes.index(next(iter(answers))) if class_index is None else class_index
        split = Split((name,), (0,), lambda path: image)
        loader = Dataloaders(
            backbone.input_spec, self.loader_config, predictor.device
        ).eval_dataloader(split)
        pixels: Tensor = loader.dataset[0][0]
        inputs = loader.preprocess(pixels[None])
        seen = class_map.run_with_class_map(
            backbone.module, inputs, taps=self.taps, head=backbone.head, class_index=index
        )
        near, moved = self.neighbours, self.source
        return Explanation(
            name=name,
            pixels=pixels,
            probabilities=answers,
            class_name=predictor.classes[index],
            class_map=seen.class_map,
            neighbours=[]
            if isinstance(near, str)
            else near.nearest(seen.head_input, NUM_NEIGHBOURS),
            differences=[]
            if isinstance(moved, str)
            else differences(moved, inputs, target=seen.outputs, taps=self.taps),
        )

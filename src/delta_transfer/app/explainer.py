"""Explain a prediction: class map, nearest training images, differences to the source."""

import dataclasses
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from delta_transfer.app import class_map
from delta_transfer.app.class_map import ClassMap
from delta_transfer.app.differences import FeatureDifference, Source, differences
from delta_transfer.app.neighbours import Neighbour, NeighbourIndex
from delta_transfer.data.task import Split
from delta_transfer.inference.predictor import Predictor
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.training.loaders import Dataloaders

NUM_NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The prediction for one image, and its explanation.

    Args:
        name: of the image.
        pixels: the network's input before normalisation, bytes `[3, S, S]`.
        probabilities: class -> probability, the most probable first.
        class_name: the class of the map.
        class_map: None if no position supports the class, or the network has no positions.
        neighbours: nearest first; empty if there are no training images.
        differences: of each tap; empty if the pretrained network is not available.
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
    """The network of a finished run, and the data that explains its predictions.

    Not thread-safe.

    Args:
        predictor: the run.
        result: its results.
        loaders: of single images.
        taps: name -> channel dimension of its output, where features are compared.
        neighbours: training images, or why there are none.
        source: the pretrained network, or why there is none.
    """

    predictor: Predictor
    result: RunResult
    loaders: Dataloaders
    taps: Mapping[str, int]
    neighbours: NeighbourIndex | str
    source: Source | str

    def explain(
        self, image: Image.Image, *, name: str, class_index: int | None = None
    ) -> Explanation:
        """Predict and explain an image.

        Args:
            image: in RGB.
            name: of the image.
            class_index: the class of the map; the most probable one if None.
        """
        predictor, backbone = self.predictor, self.predictor.backbone
        prediction = predictor.predict_sample(image, name=name)
        index = class_index
        if index is None:
            index = predictor.classes.index(prediction.top_class)
        loader = self.loaders.eval_dataloader(Split((name,), (0,), lambda path: image))
        pixels: Tensor = loader.dataset[0][0]
        inputs = loader.preprocess(pixels[None])
        forward = class_map.run_with_class_map(
            backbone.module, inputs, taps=self.taps, head=backbone.head, class_index=index
        )
        neighbours, source = self.neighbours, self.source
        return Explanation(
            name=name,
            pixels=pixels,
            probabilities=prediction.values,
            class_name=predictor.classes[index],
            class_map=forward.class_map,
            neighbours=[]
            if isinstance(neighbours, str)
            else neighbours.nearest(forward.head_input, NUM_NEIGHBOURS),
            differences=[]
            if isinstance(source, str)
            else differences(source, inputs, target=forward.outputs, taps=self.taps),
        )

"""Class activation maps: Grad-CAM by torch-cam, at the last tap with spatial positions."""

import dataclasses
import functools
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torchcam.methods import GradCAM

from delta_transfer.app.spatial_maps import as_spatial_map
from delta_transfer.features.head_inputs import HeadInputs
from delta_transfer.features.stages import output_module
from delta_transfer.features.taps import Taps
from delta_transfer.utils.module_state import eval_mode, without_parameter_gradients


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClassMap:
    """How much each position of an image supports a class.

    Args:
        tap: of the map.
        values: `[H, W]`, from 0 to 1; on the CPU.
    """

    tap: str
    values: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ForwardResult:
    """The outputs, features and class map of a network for one image.

    Args:
        outputs: tap -> its output, `[1, ...]`.
        head_input: the features, `[F]`.
        class_map: None if no position supports the class, or the network has no positions.
    """

    outputs: dict[str, Tensor]
    head_input: Tensor
    class_map: ClassMap | None


def run_with_class_map(
    network: nn.Module,
    inputs: Tensor,
    *,
    taps: Mapping[str, int],
    head: str,
    class_index: int,
) -> ForwardResult:
    """Run a network on an image in eval mode, and restore its state.

    The class map is Grad-CAM (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391). If a
    network predicts from a class token, no gradient reaches the other tokens of the last block:
    where a map is zero everywhere, the previous tap's map is used.

    Args:
        network: to run.
        inputs: `[1, 3, S, S]`.
        taps: name -> channel dimension of its output.
        head: the name of its head.
        class_index: of the class.
    """
    with ExitStack() as held:
        # Set torch-cam's hooks first: the network then gets the copies that Taps returns, so that
        # in-place operations do not change the maps.
        cams = {
            tap: held.enter_context(
                GradCAM(
                    network,
                    output_module(network.get_submodule(tap)),
                    reshape_transform=functools.partial(_spatial_map_or_output, channel_dim=dim),
                )
            )
            for tap, dim in taps.items()
        }
        recorded = held.enter_context(Taps(network, list(taps)))
        heads = held.enter_context(HeadInputs(network, [head]))
        held.enter_context(eval_mode(network))
        held.enter_context(without_parameter_gradients(network))
        held.enter_context(torch.enable_grad())
        # Not the leaf itself, which must not be changed in place.
        scores = network(inputs.detach().requires_grad_() * 1)
        outputs = recorded.outputs()
        with_map = [
            tap for tap, dim in taps.items() if as_spatial_map(outputs[tap], dim) is not None
        ]
        found = (_class_map(cams[tap], tap, class_index, scores) for tap in reversed(with_map))
        return ForwardResult(
            outputs={tap: output.detach() for tap, output in outputs.items()},
            head_input=heads.inputs()[head][0].detach(),
            class_map=next((one for one in found if one is not None), None),
        )


def _class_map(cam: GradCAM, tap: str, class_index: int, scores: Tensor) -> ClassMap | None:
    """Return the map at a tap, None if it is zero or the scores do not depend on the tap."""
    try:
        (values,) = cam(class_index, scores, normalized=False, retain_graph=True)
    except RuntimeError as error:
        if "not connected" not in str(error):
            raise
        return None
    most = values.max()
    return ClassMap(tap=tap, values=(values[0] / most).float().cpu()) if most > 0 else None


def _spatial_map_or_output(output: Tensor, *, channel_dim: int) -> Tensor:
    """Return an output as a map, or unchanged if it has no positions."""
    found = as_spatial_map(output, channel_dim)
    return output if found is None else found

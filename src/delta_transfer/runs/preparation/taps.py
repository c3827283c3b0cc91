"""The modules that a run taps: as asked for, and tried on the network."""

import torch
from torch import nn

from delta_transfer.attention.official import official_taps
from delta_transfer.backbones.base import Backbone
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import Taps, resolve_taps
from delta_transfer.utils.module_state import device_of, eval_mode


def choose_taps(config: TrainConfig, backbone: Backbone, source: nn.Module) -> tuple[str, ...]:
    """The modules whose features are compared.

    Args:
        config: the options.
        backbone: the network as it was loaded.
        source: the same without its head.

    Raises:
        UserError: if a name is unknown, ends in the head, or gives no features to compare.
    """
    taps = resolve_taps(source, _tap_names(config, backbone, source))
    _check_taps(taps, backbone.head)
    _try_taps(source, taps, backbone.input_spec.example())
    return taps


def _tap_names(config: TrainConfig, backbone: Backbone, source: nn.Module) -> list[str]:
    if config.taps != "auto":
        names = [name.strip() for name in config.taps.split(",")]
        if not all(names):
            raise UserError(
                f"--taps '{config.taps}': a name is empty; give names of modules with a comma "
                "between (see: delta-transfer taps MODEL), or auto"
            )
        return names
    if config.paper_protocol:
        return list(official_taps(backbone.architecture or config.model))
    return list(auto_taps(source, example=backbone.input_spec.example().to(device_of(source))))


def _check_taps(taps: tuple[str, ...], head: str) -> None:
    """Raises UserError where a tap is the head, or has it inside."""
    beyond = [tap for tap in taps if f"{head}.".startswith(f"{tap}.")]
    if beyond:
        raise UserError(
            f"--taps: {', '.join(beyond)} ends in the head, {head}, which is new, so that there is "
            "nothing to compare it with; choose modules before it (see: delta-transfer taps "
            "MODEL)"
        )


def _try_taps(source: nn.Module, taps: tuple[str, ...], example: Inputs) -> None:
    """Raises UserError where a tap is not called, called twice or gives no tensor."""
    try:
        with Taps(source, taps) as recorder, eval_mode(source), torch.no_grad():
            source(example.to(device_of(source)))
            missing = [tap for tap in taps if tap not in recorder.channel_dims]
            if missing:
                raise UserError(
                    f"--taps: the network does not use {', '.join(missing)}; choose from those "
                    "that delta-transfer taps MODEL lists"
                )
            recorder.outputs()
    except RuntimeError as error:
        raise UserError(f"--taps: {error}") from error

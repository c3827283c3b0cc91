"""The taps of a run: their names, checked with a forward pass."""

import torch
from torch import nn

from delta_transfer.attention.official import official_taps
from delta_transfer.backbones.base import Backbone
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import Taps, resolve_taps
from delta_transfer.utils.module_state import device_of, eval_mode


def choose_taps(config: TrainConfig, backbone: Backbone, source: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules whose features are compared.

    Args:
        config: the options.
        backbone: the loaded network.
        source: the network without its head.

    Raises:
        UserError: if a name is unknown, contains the head, or has no features to compare.
    """
    taps = resolve_taps(source, _tap_names(config, backbone, source))
    _check_taps(taps, backbone.head)
    _try_taps(source, taps, backbone.input_spec.example())
    return taps


def _tap_names(config: TrainConfig, backbone: Backbone, source: nn.Module) -> list[str]:
    if config.taps != "auto":
        names = [name.strip() for name in config.taps.split(",")]
        if not all(names):
            raise ConfigError(
                f"`taps={config.taps}`: a name is empty; use module names separated by commas "
                "(see: delta-transfer taps MODEL), or auto"
            )
        return names
    if config.paper_protocol:
        return list(official_taps(backbone.architecture or config.model))
    return list(auto_taps(source, example=backbone.input_spec.example().to(device_of(source))))


def _check_taps(taps: tuple[str, ...], head: str) -> None:
    """Check that no tap is the head or contains it."""
    beyond = [tap for tap in taps if f"{head}.".startswith(f"{tap}.")]
    if beyond:
        raise ConfigError(
            f"`taps`: {', '.join(beyond)} contains the head, {head}, which is new; choose modules "
            "before it (see: delta-transfer taps MODEL)"
        )


def _try_taps(source: nn.Module, taps: tuple[str, ...], example: Inputs) -> None:
    """Check that each tap is called once and returns a tensor."""
    try:
        with Taps(source, taps) as recorder, eval_mode(source), torch.no_grad():
            source(example.to(device_of(source)))
            missing = [tap for tap in taps if tap not in recorder.channel_dims]
            if missing:
                raise ConfigError(
                    f"`taps`: the network does not use {', '.join(missing)}; choose from the "
                    "list of delta-transfer taps MODEL"
                )
            recorder.outputs()
    except RuntimeError as error:
        raise ConfigError(f"`taps`: {error}") from error

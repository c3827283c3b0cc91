"""One scorer per device, each with its share of every batch."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar, final

import torch
from torch import Tensor, nn

from delta_transfer.attention.scored import (
    Progress,
    Scored,
    Scorer,
    concatenate,
    in_fast_layout,
)
from delta_transfer.errors import UserError
from delta_transfer.features.inputs import Inputs, share
from delta_transfer.utils.module_state import device_of

S = TypeVar("S", bound=Scorer)


@final
class Shares(Generic[S]):
    """A scorer that splits each batch between copies of a network.

    Args:
        networks: the same network on its devices.
        make: makes the scorer of a network.
    """

    def __init__(self, networks: Sequence[nn.Module], make: Callable[[nn.Module], S]) -> None:
        self.scorers = [make(network) for network in networks]
        self._devices = [device_of(network) for network in networks]
        self._started = False

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: Progress | None = None
    ) -> Scored:
        """Scores of a batch, whichever device it is on."""
        count = min(len(self.scorers), len(targets))

        def score(number: int) -> Scored:
            device = self._devices[number]
            some = share(inputs, number, of=count), share(targets, number, of=count)
            moved = in_fast_layout(some[0], device), some[1].to(device)
            return self.scorers[number](*moved, progress=progress)

        if count == 1 or not self._started:
            # One after the other at first: what scorers prepare then, such as graphs of the
            # network, is not made for several threads.
            self._started = count == len(self.scorers)
            return concatenate([score(number) for number in range(count)])
        with ThreadPoolExecutor(count) as pool:
            return concatenate(list(pool.map(score, range(count))))


def on_devices(model: nn.Module, devices: Sequence[torch.device | str] | None) -> list[nn.Module]:
    """The network on each device: itself where it is there already (once), else a copy.

    Raises:
        UserError: if no devices are given, or there is none of that name.
    """
    if devices is None:
        return [model]
    if not devices:
        raise UserError("devices is empty: name one or more, or leave it out")
    networks: list[nn.Module] = []
    for name in devices:
        try:
            device = torch.empty(0, device=name).device
            own = device == device_of(model) and model not in networks
            networks.append(model if own else copy.deepcopy(model).to(device))
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"devices: {str(name)!r} cannot be used ({error})") from error
    return networks

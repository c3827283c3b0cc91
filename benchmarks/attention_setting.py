"""The setting of benchmarks/attention.py: a network, its probe, its taps and some images."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.attention import estimate_attention
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.config.train import TrainOptions
from delta_transfer.features.probe import LinearProbe, collect_features, fit_probe, replace_head
from delta_transfer.features.taps import resolve_taps
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.utils.devices import find_device, move_to_device
from delta_transfer.utils.module_state import eval_mode, without_parameter_gradients

Scores = dict[str, Tensor]  # tap -> [C], or [N, C]
Batches = list[tuple[Tensor, Tensor]]

CLASSES = 10  # of noise


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A network, its head and its taps; some images, and with --whole all of them."""

    model: nn.Module
    head: str
    probe: LinearProbe
    taps: tuple[str, ...]
    device: torch.device
    batches: Batches
    whole: Batches

    @property
    def samples(self) -> int:
        return sum(len(targets) for _, targets in self.batches)

    def on_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in self.batches:
            yield inputs.to(self.device), targets.to(self.device)

    def estimate(
        self, batches: Batches, method: str, options: argparse.Namespace, seed: int = 0
    ) -> ChannelAttention:
        return estimate_attention(
            self.model,
            batches,
            probe=self.probe,
            head=self.head,
            taps=self.taps,
            estimator=method,
            precision=options.precision,
            seed=seed,
        )

    @contextmanager
    def with_probe(self, model: nn.Module) -> Iterator[nn.Module]:
        """The network as `estimate_attention` hands it to a scorer."""
        with ExitStack() as borrowed:
            borrowed.enter_context(eval_mode(model))
            borrowed.enter_context(without_parameter_gradients(model))
            borrowed.enter_context(replace_head(model, self.head, self.probe))
            yield model


def on_data(options: argparse.Namespace) -> Setting:
    config = TrainOptions(
        data=options.data,
        model=options.model,
        image_size=options.image_size,
        batch_size=options.batch_size,
        device=options.device,
    ).resolve()
    if options.pretrained:
        prepared = prepare(config)
    else:
        backbone = load_backbone(
            options.model, num_outputs=CLASSES, image_size=options.image_size, pretrained=False
        )
        settle(backbone.module, noise(options.batch_size, backbone.input_spec.size)[0])
        prepared = prepare(config, network=backbone.module, spec=backbone.input_spec)
    train, loaders = prepared.task.train, prepared.loaders
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    return Setting(
        model=prepared.source,
        head=prepared.backbone.head,
        probe=prepared.probe,
        taps=prepared.taps,
        device=prepared.device,
        batches=list(loaders.eval_dataloader(train.subset(drawn[: options.samples]))),
        whole=list(loaders.eval_dataloader(train)) if options.whole else [],
    )


def on_noise(options: argparse.Namespace) -> Setting:
    backbone = load_backbone(
        options.model,
        num_outputs=CLASSES,
        image_size=options.image_size,
        pretrained=options.pretrained,
    )
    inputs, targets = noise(options.samples, backbone.input_spec.size)
    device = find_device(options.device)
    if not options.pretrained:
        settle(backbone.module, inputs[: options.batch_size])
    move_to_device(backbone.module, device)
    size = options.batch_size
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    features, labels = collect_features(backbone.module, batches, head=backbone.head)
    return Setting(
        model=backbone.module,
        head=backbone.head,
        probe=fit_probe(features, labels, num_outputs=CLASSES),
        taps=resolve_taps(backbone.module, "auto"),
        device=device,
        batches=batches,
        whole=[],
    )


def noise(samples: int, size: int) -> tuple[Tensor, Tensor]:
    """Images of clouds in the colours of their class, under fine noise; and their classes."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % CLASSES
    clouds = torch.randn(samples, 3, 8, 8, generator=draw)
    clouds += torch.randn(CLASSES, 3, 1, 1, generator=draw)[targets]
    smooth = F.interpolate(clouds, size=(size, size), mode="bicubic")
    return smooth + 0.3 * torch.randn(samples, 3, size, size, generator=draw), targets


def settle(model: nn.Module, inputs: Tensor) -> None:
    """Gives random weights what training would: no branch is off, batch norm knows its inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-3:  # a layer scale, or the last gain of a branch
                parameter.uniform_(0.2, 0.6)
        model.train()
        for norm in norms:
            norm.momentum = 1.0
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return result, time.perf_counter() - started

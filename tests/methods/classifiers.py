"""Small instances of the penalties that train a copy of the pretrained classifier."""

import math

import torch
from torch import Tensor, nn

from delta_transfer import CoTuning, LwF, Penalty, Step

LABELS = torch.tensor([0, 2, 1, 2])


def classifier(bias: bool = True) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(6, 9, bias=bias).double()


def relationship() -> Tensor:
    torch.manual_seed(6)
    return torch.softmax(torch.randn(3, 9, dtype=torch.float64), dim=1)


def make(name: str, strength: float = 0.3) -> Penalty:
    if name == "lwf":
        return LwF(classifier(), head="fc", strength=strength)
    return CoTuning(classifier(), relationship(), head="fc", strength=strength)


def rows(seed: int) -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(now: Tensor, then: Tensor) -> Step:
    return Step(
        target=nn.Identity(),
        source=nn.Identity(),
        targets=LABELS,
        head_inputs={"fc": now},
        source_head_inputs={"fc": then},
    )


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def logits_by_hand(head: nn.Linear, features: Tensor) -> list[list[float]]:
    bias = [0.0] * 9 if head.bias is None else head.bias.tolist()
    both = list(zip(head.weight.tolist(), bias, strict=True))
    return [
        [math.fsum(map(math.prod, zip(row, w, strict=True))) + c for w, c in both]
        for row in features.tolist()
    ]


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / math.fsum(powers) for power in powers]

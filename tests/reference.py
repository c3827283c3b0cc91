"""Slow, obvious versions of the formulas to test against; they share no code with the package.

Feature maps are handed over as `[sample][position][channel]`: `maps` turns a tensor into that.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Maps = list[list[list[float]]]


def maps(features: Tensor, layout: str) -> Maps:
    """`[sample][position][channel]` of features laid out as "NCHW", "NHWC", "tokens" or "rows"."""
    values = features.tolist()
    if layout == "NCHW":
        _, channels, height, width = features.shape
        return [
            [
                [sample[c][h][w] for c in range(channels)]
                for h in range(height)
                for w in range(width)
            ]
            for sample in values
        ]
    if layout == "NHWC":
        return [[position for row in sample for position in row] for sample in values]
    if layout == "tokens":
        return values
    assert layout == "rows"
    return [[row] for row in values]


def grouped(rows: Tensor, groups: Sequence[int]) -> Maps:
    """`[sample][position][channel]` of graph nodes `[R, C]`: a sample's positions are its nodes."""
    return [
        [row.tolist() for row, group in zip(rows, groups, strict=True) if group == sample]
        for sample in sorted(set(groups))
    ]


def variance(batches: Sequence[Maps]) -> float:
    """The mean over channels of the variance over all samples and positions."""
    positions = [position for batch in batches for sample in batch for position in sample]
    channels = len(positions[0])
    variances = []
    for c in range(channels):
        values = [position[c] for position in positions]
        mean = math.fsum(values) / len(values)
        variances.append(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return math.fsum(variances) / channels


def attention(
    scores: Sequence[float],
    temperature: float,
    score_clip: float = math.inf,
    clamp_negative_scores: bool = False,
) -> list[float]:
    """softmax(z / temperature), z = (score - mean) / population standard deviation."""
    scores = [max(score, 0.0) for score in scores] if clamp_negative_scores else scores
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    if deviation == 0:
        return [1 / len(scores)] * len(scores)
    standard = [min(max((score - mean) / deviation, -score_clip), score_clip) for score in scores]
    powers = [math.exp(z / temperature) for z in standard]
    return [power / math.fsum(powers) for power in powers]


def entropy(attention: Sequence[float]) -> float:
    """-sum a log a, in nats."""
    return -math.fsum(a * math.log(a) for a in attention if a > 0)


def jackknife(
    rows: Sequence[Sequence[float]], function: Callable[[list[float]], list[float]], groups: int
) -> float:
    """||SE|| of function(mean of rows): each group of every so many rows is left out once."""
    found = []
    for group in range(min(groups, len(rows))):
        kept = [row for i, row in enumerate(rows) if i % groups != group]
        found.append(
            function([math.fsum(column) / len(kept) for column in zip(*kept, strict=True)])
        )
    count = len(found)
    total = 0.0
    for column in zip(*found, strict=True):
        mean = math.fsum(column) / count
        total += (count - 1) / count * math.fsum((value - mean) ** 2 for value in column)
    return math.sqrt(total)


def refined(
    exact: Sequence[Sequence[float]],
    first: Sequence[Sequence[float]],
    probabilities: Sequence[float],
    mean: Sequence[float],
    mean_absolute: Sequence[float],
    samples: int,
) -> tuple[list[float], list[float]]:
    """Scores and standard errors from exact scores of a few samples; by normal equations."""
    total = math.fsum(1 / p for p in probabilities)
    weights = [1 / p / total for p in probabilities]
    count, width = len(exact), len(mean)
    cells = [(i, c) for i in range(count) for c in range(width)]

    def moment(left: Callable[[int, int], float], right: Callable[[int, int], float]) -> float:
        return math.fsum(weights[i] * left(i, c) * right(i, c) for i, c in cells)

    def g(i: int, c: int) -> float:
        return first[i][c]

    def size(i: int, c: int) -> float:
        return abs(first[i][c])

    def e(i: int, c: int) -> float:
        return exact[i][c]

    gg, gs, ss, ge, se = (
        moment(g, g),
        moment(g, size),
        moment(size, size),
        moment(g, e),
        moment(size, e),
    )
    determinant = gg * ss - gs * gs
    b1, b2 = (ge * ss - se * gs) / determinant, (se * gg - ge * gs) / determinant

    scores, variances, offsets, spreads = [], [], [], []
    for c in range(width):
        residuals = [e(i, c) - b1 * g(i, c) - b2 * size(i, c) for i in range(count)]
        offset = math.fsum(w * r for w, r in zip(weights, residuals, strict=True))
        offsets.append(offset)
        drawn = (
            w**2 * (1 - p) * (r - offset) ** 2
            for w, p, r in zip(weights, probabilities, residuals, strict=True)
        )
        variances.append(count / (count - 1) * math.fsum(drawn))
        centre = math.fsum(w * e(i, c) for i, w in enumerate(weights))
        squares = math.fsum(w * (e(i, c) - centre) ** 2 for i, w in enumerate(weights))
        spreads.append(count / (count - 1) * squares)
    variance, common = math.fsum(variances) / width, math.fsum(offsets) / width
    between = max(0.0, math.fsum((o - common) ** 2 for o in offsets) / width - variance)
    shrinkage = between / (between + variance) if variance > 0 else 1.0
    for c in range(width):
        model = b1 * mean[c] + b2 * mean_absolute[c]
        scores.append(model + common + shrinkage * (offsets[c] - common))
    errors = [
        math.sqrt(shrinkage * v + spread / samples)
        for v, spread in zip(variances, spreads, strict=True)
    ]
    return scores, errors


def distance(
    target: Maps, source: Maps, variance: float, attention: Sequence[float] | None = None
) -> float:
    """1/2 mean_b sum_c a_c mean_s (T - S)^2 / v, of one tap."""
    total = 0.0
    for sample_now, sample_then in zip(target, source, strict=True):
        channels = len(sample_now[0])
        weights = [1 / channels] * channels if attention is None else attention
        for c in range(channels):
            squares = [
                (now[c] - then[c]) ** 2 for now, then in zip(sample_now, sample_then, strict=True)
            ]
            total += weights[c] * math.fsum(squares) / len(squares)
    return 0.5 * total / len(target) / variance


def official(target: Maps, source: Maps, attention: Sequence[float] | None = None) -> float:
    """1/2 sum_b sum_c C a_c ||T - S||^2 / (H W) with attention, a bare 1/2 ||T - S||^2 without."""
    total = 0.0
    for sample_now, sample_then in zip(target, source, strict=True):
        positions, channels = len(sample_now), len(sample_now[0])
        for c in range(channels):
            norm = math.fsum(
                (now[c] - then[c]) ** 2 for now, then in zip(sample_now, sample_then, strict=True)
            )
            total += norm if attention is None else channels * attention[c] * norm / positions
    return 0.5 * total


def squared_norm(parameters: Sequence[Tensor]) -> float:
    """||w||^2 over some parameters."""
    return math.fsum(value**2 for parameter in parameters for value in parameter.flatten().tolist())


def squared_way(target: nn.Module, source: nn.Module) -> float:
    """||w - w0||^2 over the parameters that both networks have under the same name and shape."""
    start = {name: parameter.detach() for name, parameter in source.named_parameters()}
    return squared_norm(
        [
            parameter.detach() - start[name]
            for name, parameter in target.named_parameters()
            if name in start and start[name].shape == parameter.shape
        ]
    )


def hooked(
    model: nn.Module, names: Sequence[str], inputs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The network's output and copies of the outputs of some modules, from plain forward hooks."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def hook(module: nn.Module, args: object, output: Tensor, name: str = name) -> None:
            found[name] = output.clone()

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    result = model(inputs)
    for handle in handles:
        handle.remove()
    return result, found


def with_head(model: nn.Module, head: str, function: nn.Module) -> nn.Module:
    """A copy of a network in eval mode with another head."""
    changed = copy.deepcopy(model).eval()
    parent, _, name = head.rpartition(".")
    setattr(changed.get_submodule(parent), name, function)
    return changed


def exact_scores(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    tap: str,
    channel_dim: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[float]:
    """How much the loss of a sample grows without a channel, the mean over samples, one by one."""
    module = model.get_submodule(tap)
    width = hooked(model, [tap], inputs[:1])[1][tap].shape[channel_dim]
    scores = [0.0] * width
    for b in range(len(inputs)):
        image, label = inputs[b : b + 1], targets[b : b + 1]
        plain = loss(model(image), label).item()
        for channel in range(width):

            def hook(m: nn.Module, args: object, output: Tensor, channel: int = channel) -> Tensor:
                mask = torch.ones(width, dtype=output.dtype)
                mask[channel] = 0
                shape = [1] * output.ndim
                shape[channel_dim] = width
                return output * mask.view(shape)

            handle = module.register_forward_hook(hook)
            scores[channel] += (loss(model(image), label).item() - plain) / len(inputs)
            handle.remove()
    return scores


def gradient_scores(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    tap: str,
    channel_dim: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[float]:
    """- sum_s F_cs dl/dF_cs of a sample, the mean over samples, one by one."""
    module = model.get_submodule(tap)
    scores: list[float] = []
    for b in range(len(inputs)):
        kept: list[Tensor] = []

        def hook(m: nn.Module, args: object, output: Tensor, kept: list[Tensor] = kept) -> Tensor:
            leaf = output.detach().requires_grad_()
            kept.append(leaf)
            return leaf.clone()

        handle = module.register_forward_hook(hook)
        value = loss(model(inputs[b : b + 1]), targets[b : b + 1])
        handle.remove()
        (gradient,) = torch.autograd.grad(value, kept)
        products = (kept[0].detach() * gradient).movedim(channel_dim, 0).flatten(1)
        sums = [-math.fsum(products[c].tolist()) / len(inputs) for c in range(len(products))]
        scores = [a + b for a, b in zip(scores, sums, strict=True)] if scores else sums
    return scores

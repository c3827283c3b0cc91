"""The linear probe: a head fitted on frozen, cached features."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor, nn

from delta_transfer.borrow import device_of, evaluating
from delta_transfer.errors import UserError, match_names

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]

# Seven decades in half-decade steps.
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(4, -11, -1))


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted linear head, `logits = features @ weight.T + bias`.

    Args:
        weight: `[K, F]`.
        bias: `[K]`.
        strength: the penalty that cross-validation chose.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[B, K]` of features `[B, F]`."""
        weight, bias = self.weight.to(features), self.bias.to(features)
        return F.linear(features, weight, bias)


def find_head(model: nn.Module, head: str = "auto") -> str:
    """The name of the module that turns features into logits.

    `"auto"` asks timm's `get_classifier()` where there is one, else takes the last `nn.Linear`.

    Raises:
        UserError: if there is none, or the name is unknown.
    """
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if name}
    if head != "auto":
        return match_names("head", [head], list(names.values()))[0]
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier) and classifier() in names:
        return names[classifier()]
    linear = [name for module, name in names.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            f"no head found in {type(model).__name__}: name the module that makes the logits, "
            "for example head='fc'"
        )
    return linear[-1]


@contextmanager
def replaced_head(
    model: nn.Module, head: str, function: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Inside, the head's output is `function` of its input; the model itself is not changed."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        return function(inputs[0])

    handle = model.get_submodule(head).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def collect_features(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    head: str = "auto",
    mirror: bool = False,
) -> tuple[Tensor, Tensor]:
    """What the head sees, for a whole loader: in eval mode and without gradients.

    Args:
        model: the network; left as it was.
        loader: batches (inputs, targets).
        head: the name of the head.
        mirror: also the features of the mirror images of pictures `[B, C, H, W]`.

    Returns:
        Features `[N, V, F]` (V = 2 views with mirror images, else 1), and targets `[N, ...]`, on
        the CPU.

    Raises:
        UserError: if the loader is empty, or the head's inputs are not rows `[B, F]`.
    """
    views: list[Tensor] = []
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    device = device_of(model)

    def keep(features: Tensor) -> Tensor:
        views.append(features)
        return features

    with (
        evaluating(model),
        torch.no_grad(),
        replaced_head(model, find_head(model, head), keep),
    ):
        for inputs, targets in loader:
            views.clear()
            for picture in (inputs, inputs.flip(-1)) if mirror else (inputs,):
                model(picture.to(device))
            if not views or views[0].ndim != 2:
                found = tuple(views[0].shape) if views else "nothing"
                raise UserError(f"the head {head!r} must be given rows [B, F], it got {found}")
            rows.append(torch.stack(views, dim=1).float().cpu())
            labels.append(torch.as_tensor(targets).cpu())
    if not rows:
        raise UserError("the loader is empty: a linear probe needs training data")
    return torch.cat(rows), torch.cat(labels)


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    num_outputs: int,
    loss: Loss = F.cross_entropy,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """L2-regularised linear head on standardised features, its strength cross-validated.

    Minimises `mean loss + strength ||W||^2` (bias free) with L-BFGS; with cross entropy this is
    multinomial logistic regression. Standardisation is folded back into weight and bias. Of the
    strengths the one with the lowest held-out loss is taken; folds are stratified by class, and all
    views of a sample are in one fold.

    Args:
        features: `[N, F]`, or `[N, V, F]` with V views of each sample.
        targets: class indices `[N]`, or what `loss` takes.
        num_outputs: K.
        loss: mean over the batch, as `F.cross_entropy`.
        strengths: the candidates; a single one is not cross-validated.
        folds: how many; fewer where the smallest class has fewer samples.
        seed: of the draw of the folds.

    Returns:
        The probe, in float32 on the features' device.

    Example:
        >>> x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> probe = fit_probe(x, torch.tensor([0, 0, 1, 1]), num_outputs=2)
        >>> probe(x).argmax(dim=1)
        tensor([0, 0, 1, 1])
    """
    views = features.float().unsqueeze(1) if features.ndim == 2 else features.float()
    rows = views.flatten(0, 1)
    mean, scale = rows.mean(dim=0), rows.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    # Fewer samples than features: the same problem in the space that the samples span.
    _, _, basis = torch.linalg.svd((rows - mean) / scale, full_matrices=False)
    standard = (views - mean) / scale @ basis.T
    strengths = sorted(strengths, reverse=True)
    best = strengths[0]
    if len(strengths) > 1:
        losses = _held_out_losses(standard, targets, num_outputs, loss, strengths, folds, seed)
        best = strengths[int(np.argmin(losses))]
        logger.debug("probe: held-out losses %s", dict(zip(strengths, losses, strict=True)))
    path = [strength for strength in strengths if strength >= best]
    weight, bias = _fit_path(standard, targets, num_outputs, loss, path)[-1]
    weight = weight @ basis / scale
    return LinearProbe(weight, bias - weight @ mean, best)


def _held_out_losses(
    features: Tensor,
    targets: Tensor,
    num_outputs: int,
    loss: Loss,
    strengths: Sequence[float],
    folds: int,
    seed: int,
) -> list[float]:
    totals = np.zeros(len(strengths))
    for train, held_out in _folds(targets, folds, seed):
        heads = _fit_path(features[train], targets[train], num_outputs, loss, strengths)
        for i, (weight, bias) in enumerate(heads):
            logits = F.linear(features[held_out].flatten(0, 1), weight, bias)
            repeated = targets[held_out].repeat_interleave(features.shape[1], dim=0)
            totals[i] += loss(logits, repeated.to(logits.device)).item() * len(held_out)
    return list(totals / len(targets))


def _folds(targets: Tensor, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    labels = targets.cpu().numpy()
    classes = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    smallest = int(np.unique(labels, return_counts=True)[1].min()) if classes else 0
    if smallest >= 2:
        splitter: Any = StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed)
    else:
        splitter = KFold(max(2, min(folds, len(labels))), shuffle=True, random_state=seed)
    for train, held_out in splitter.split(labels, labels):
        yield torch.from_numpy(train), torch.from_numpy(held_out)


def _fit_path(
    features: Tensor, targets: Tensor, num_outputs: int, loss: Loss, strengths: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Heads for falling strengths, each started from the one before."""
    rows = features.flatten(0, 1)
    labels = targets.repeat_interleave(features.shape[1], dim=0).to(rows.device)
    weight = torch.zeros(num_outputs, rows.shape[1], device=rows.device, requires_grad=True)
    bias = torch.zeros(num_outputs, device=rows.device, requires_grad=True)
    heads = []
    for strength in strengths:
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def objective(
            strength: float = strength, optimizer: torch.optim.LBFGS = optimizer
        ) -> Tensor:
            optimizer.zero_grad()
            value = loss(F.linear(rows, weight, bias), labels) + strength * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            optimizer.step(objective)  # type: ignore[no-untyped-call]
        heads.append((weight.detach().clone(), bias.detach().clone()))
    return heads

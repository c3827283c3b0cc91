"""The linear probe: a head fitted on frozen, cached features."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor, nn

from delta_transfer.errors import DataError, ModelError, match_names
from delta_transfer.features.inputs import Inputs
from delta_transfer.utils.module_state import device_of, eval_mode

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]

# Seven decades in half-decade steps.
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(4, -11, -1))
# Stopping criteria of L-BFGS, for the final probe and for the comparison of strengths.
FINAL_TOLERANCES = {"ftol": 1e-12, "gtol": 1e-6}
SEARCH_TOLERANCES = {"ftol": 1e-7, "gtol": 1e-5}
PATIENCE = 4  # stop the search after this many strengths without a lower held-out loss


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted linear head, `logits = features @ weight.T + bias`.

    Args:
        weight: `[K, F]`.
        bias: `[K]`.
        regularization: the factor of the L2 penalty, chosen by cross-validation.
    """

    weight: Tensor
    bias: Tensor
    regularization: float

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits `[B, K]` of features `[B, F]`."""
        weight, bias = self.weight.to(features), self.bias.to(features)
        return F.linear(features, weight, bias)


def find_head(model: nn.Module, head: str = "auto") -> str:
    """Return the name of the module that maps features to logits.

    `"auto"` uses timm's `get_classifier()` if the model has it, otherwise the last `nn.Linear`.

    Raises:
        ModelError: if there is no linear layer.
        ConfigError: if the name is unknown.
    """
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if name}
    if head != "auto":
        return match_names("head", [head], list(names.values()))[0]
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier) and classifier() in names:
        return names[classifier()]
    linear = [name for module, name in names.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(
            f"no head found in {type(model).__name__}: name the module that returns the logits, "
            "for example head='fc'"
        )
    return linear[-1]


@contextmanager
def replace_head(
    model: nn.Module, head: str, function: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the head's output by `function` of its input, by a hook inside the context."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        return function(inputs[0])

    handle = model.get_submodule(head).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def collect_features(
    model: nn.Module,
    loader: Iterable[tuple[Inputs, Tensor]],
    *,
    head: str = "auto",
    horizontal_flip: bool = False,
) -> tuple[Tensor, Tensor]:
    """Collect the inputs of the head for a whole loader, in eval mode and without gradients.

    Args:
        model: the network; it is not changed.
        loader: batches (inputs, targets).
        head: the name of the head.
        horizontal_flip: also collect the features of horizontally flipped images `[B, C, H, W]`;
            other inputs are not flipped.

    Returns:
        Features `[N, V, F]` (V = 2 views with flipped images, else 1), and targets `[N, ...]`, on
        the CPU.

    Raises:
        ModelError: if the head is not found or has inputs other than `[B, F]`.
        DataError: if the loader is empty.
        ConfigError: if the name of the head is unknown.
    """
    views: list[Tensor] = []
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    device = device_of(model)

    def keep(features: Tensor) -> Tensor:
        views.append(features)
        return features

    with (
        eval_mode(model),
        torch.no_grad(),
        replace_head(model, find_head(model, head), keep),
    ):
        for inputs, targets in loader:
            views.clear()
            model(inputs.to(device))
            if horizontal_flip and isinstance(inputs, Tensor):
                model(inputs.flip(-1).to(device))
            if not views or views[0].ndim != 2:
                found = tuple(views[0].shape) if views else "nothing"
                raise ModelError(f"the inputs of head {head!r} must be rows [B, F], got {found}")
            rows.append(torch.stack(views, dim=1).float().cpu())
            labels.append(torch.as_tensor(targets).cpu())
    if not rows:
        raise DataError("the loader is empty: pass training data for the linear probe")
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
    standardize: bool | Literal["auto"] = "auto",
) -> LinearProbe:
    """Fit an L2-regularised linear head on scaled features, with cross-validated strength.

    Minimises `mean loss + strength ||W||^2` (bias free) with L-BFGS; with cross entropy this is
    multinomial logistic regression. Scaling is folded back into weight and bias. The strength and
    the scaling with the lowest held-out loss are selected; folds are stratified by class, and all
    views of a sample are in the same fold.

    Args:
        features: `[N, F]`, or `[N, V, F]` with V views of each sample.
        targets: class indices `[N]`, or the targets of `loss`.
        num_outputs: the number of outputs, K.
        loss: a loss averaged over the batch, such as `F.cross_entropy`.
        strengths: the candidates; a single one is used without cross-validation.
        folds: the number of folds; reduced if the smallest class has fewer samples.
        seed: the seed of the assignment to folds.
        standardize: divide each feature by its standard deviation; if False, divide all features by
            one common value, so that nearly constant features do not get large weights; `"auto"`
            takes what has the lower held-out loss.

    Returns:
        The probe, in float32 on the CPU.

    Example:
        >>> x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> probe = fit_probe(x, torch.tensor([0, 0, 1, 1]), num_outputs=2)
        >>> probe(x).argmax(dim=1)
        tensor([0, 0, 1, 1])
    """
    views = features.unsqueeze(1) if features.ndim == 2 else features
    views, labels = views.detach().cpu().double(), _as_target(targets)
    strengths = sorted(strengths, reverse=True)
    choices = (False, True) if standardize == "auto" else (standardize,)
    scaled = [_scale(views, standardize=choice) for choice in choices]
    best, chosen = strengths[0], scaled[0]
    if len(strengths) > 1 or len(scaled) > 1:
        lowest = math.inf
        for candidate in scaled:
            rows = candidate.rows
            losses = _held_out_losses(rows, labels, num_outputs, loss, strengths, folds, seed)
            logger.debug("probe: held-out losses %s", losses)
            if min(losses) < lowest:
                lowest = min(losses)
                best, chosen = strengths[int(np.argmin(losses))], candidate
    path = [strength for strength in strengths if strength >= best]
    *_, (weight, bias) = _fit_path(chosen.rows, labels, num_outputs, loss, path, FINAL_TOLERANCES)
    weight = weight @ chosen.basis / chosen.scale
    bias = bias - weight @ chosen.mean
    return LinearProbe(weight.float(), bias.float(), best)


class _Scaled(NamedTuple):
    """Features `[N, V, M]` in the subspace `basis` of the samples, and how they were scaled."""

    rows: Tensor
    basis: Tensor
    mean: Tensor
    scale: Tensor


def _scale(views: Tensor, *, standardize: bool) -> _Scaled:
    """Centre and scale features `[N, V, F]`, and drop directions that no sample has."""
    rows = views.flatten(0, 1)
    mean, scale = rows.mean(dim=0), rows.std(dim=0, correction=0)
    # Features are float32: those that vary only by rounding errors are constant.
    constant = scale <= 10 * torch.finfo(torch.float32).eps * mean.abs()
    if not standardize:
        scale = scale.square().mean().sqrt().expand_as(scale)
    scale = torch.where(constant, torch.ones_like(scale), scale)
    # With fewer samples than features, solve the same problem in the subspace of the samples.
    _, _, basis = torch.linalg.svd((rows - mean) / scale, full_matrices=False)
    return _Scaled((views - mean) / scale @ basis.T, basis, mean, scale)


def _as_target(targets: Tensor) -> Tensor:
    targets = targets.detach().cpu()
    return targets.double() if targets.is_floating_point() else targets


def _held_out_losses(
    features: Tensor,
    targets: Tensor,
    num_outputs: int,
    loss: Loss,
    strengths: Sequence[float],
    folds: int,
    seed: int,
) -> list[float]:
    """Return the mean held-out loss of each strength, up to two decades past the minimum."""
    folded = []
    for train, held_out in _folds(targets, folds, seed):
        heads = _fit_path(
            features[train], targets[train], num_outputs, loss, strengths, SEARCH_TOLERANCES
        )
        rows = features[held_out].flatten(0, 1)
        labels = targets[held_out].repeat_interleave(features.shape[1], dim=0)
        folded.append((heads, rows, labels, len(held_out)))
    losses: list[float] = []
    for _ in strengths:
        total = 0.0
        for heads, rows, labels, size in folded:
            weight, bias = next(heads)
            total += loss(F.linear(rows, weight, bias), labels).item() * size
        losses.append(total / len(targets))
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    return losses


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
    features: Tensor,
    targets: Tensor,
    num_outputs: int,
    loss: Loss,
    strengths: Sequence[float],
    stop: Mapping[str, float],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the heads for decreasing strengths, each initialised with the previous one."""
    rows = features.flatten(0, 1)
    labels = targets.repeat_interleave(features.shape[1], dim=0)
    shape = (num_outputs, rows.shape[1] + 1)
    start = np.zeros(shape[0] * shape[1])

    def objective(values: "np.ndarray[Any, Any]", strength: float) -> tuple[float, Any]:
        with torch.enable_grad():
            head = torch.from_numpy(values).view(shape).requires_grad_()
            weight, bias = head[:, :-1], head[:, -1]
            value = loss(F.linear(rows, weight, bias), labels) + strength * weight.square().sum()
        (gradient,) = torch.autograd.grad(value, head)
        return value.item(), gradient.flatten().numpy()

    for strength in strengths:
        found = minimize(
            objective,
            start,
            args=(strength,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, **stop},
        )
        start = found.x
        head = torch.from_numpy(start.copy()).view(shape)
        yield head[:, :-1], head[:, -1]

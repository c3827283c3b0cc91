import copy
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from delta_transfer import (
    L2,
    L2SP,
    LDIFS,
    ChannelAttention,
    Delta,
    LwF,
    Penalty,
    Regularizer,
    Step,
    UserError,
    estimate_attention,
)
from delta_transfer.errors import ConfigError, DataError
from tests import reference
from tests.networks import ConvNet, conv_net, hooks_of, moved

TAPS = ("norm1", "conv3")
VARIANCE = {"norm1": 0.5, "conv3": 2.0}


def images(count=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=dtype)


def some_attention(dtype=torch.float32) -> ChannelAttention:
    torch.manual_seed(3)
    return ChannelAttention(
        scores={"norm1": torch.randn(4, dtype=dtype), "conv3": torch.randn(6, dtype=dtype)},
        variance={tap: torch.tensor(value, dtype=dtype) for tap, value in VARIANCE.items()},
        temperature=0.7,
        estimator="exact",
        samples=3,
        source="",
    )


def pair(seed=0) -> tuple[ConvNet, ConvNet]:
    source = conv_net(seed)
    return moved(source).train(), source


def flags(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


def statistics(net: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in net.buffers()]


def unchanged(net: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))


def omega(target: nn.Module, source: nn.Module, x: torch.Tensor, official=False) -> float:
    """The reference value of Delta with `some_attention`."""
    attention = some_attention(x.dtype)
    with torch.no_grad():
        ours = reference.hooked(copy.deepcopy(target).eval(), TAPS, x)[1]
        theirs = reference.hooked(copy.deepcopy(source).eval(), TAPS, x)[1]
    total = 0.0
    for tap in TAPS:
        weights = reference.attention(attention.scores[tap].tolist(), 0.7)
        maps = reference.maps(ours[tap], "NCHW"), reference.maps(theirs[tap], "NCHW")
        if official:
            total += reference.official(*maps, weights)
        else:
            total += reference.distance(*maps, VARIANCE[tap], weights) / len(TAPS)
    return total


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_terms_and_their_total_are_those_of_the_reference(dtype):
    target, source = (net.to(dtype) for net in pair())
    attention = some_attention(dtype)
    penalties = [
        Delta(attention, strength=3.0),
        Delta.official(attention, strength=0.01),
        L2SP(strength=0.2),
        L2("fc", strength=0.1),
        L2("conv1", strength=0.5),
    ]
    x = images(dtype=dtype)
    with Regularizer(target, source, penalties) as regularizer:
        target(x)
        terms = regularizer(x)
    expected = {
        "delta": 3.0 * omega(target, source, x),
        "delta#2": 0.01 * omega(target, source, x, official=True),
        "l2sp": 0.2 * 0.5 * reference.squared_way(target, source),
        "l2": 0.1 * 0.5 * reference.squared_norm(list(target.fc.parameters())),
        "l2#2": 0.5 * 0.5 * reference.squared_norm(list(target.conv1.parameters())),
    }
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6}[dtype]
    assert list(terms.values) == list(expected) == list(regularizer.term_names)
    for name, value in expected.items():
        assert terms.values[name].shape == ()
        assert terms.values[name].item() == pytest.approx(value, rel=tolerance)
    assert terms.total.item() == pytest.approx(sum(expected.values()), rel=tolerance)
    assert terms.total.dtype == dtype


def test_the_gradient_is_that_of_the_reference():
    target, source = (net.double() for net in pair())
    x = images(2, dtype=torch.float64)
    with Regularizer(target, source, [Delta(some_attention(torch.float64), strength=1.0)]) as r:
        target(x)
        r(x).total.backward()
    step = 1e-5
    for name in ("conv1.weight", "norm1.bias", "conv3.weight"):
        parameter = target.get_parameter(name)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.view(-1)[1] += sign * step
                values.append(omega(target, source, x))
                parameter.view(-1)[1] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert parameter.grad.view(-1)[1].item() == pytest.approx(slope, rel=1e-5)
    assert target.fc.weight.grad is None
    assert all(parameter.grad is None for parameter in source.parameters())


def test_no_penalties_are_a_total_of_zero():
    target, _ = pair()
    with Regularizer(target, None, []) as regularizer:
        terms = regularizer(images())
    assert terms.total.item() == 0
    assert not terms.values


# ----------------------------------------------------------------------- zero at the start

NETWORKS = {
    "conv_net": lambda: conv_net(),
    "resnet10t": lambda: timm.create_model("resnet10t", pretrained=False),
    "test_efficientnet": lambda: timm.create_model("test_efficientnet", pretrained=False),
}


def started(name: str) -> tuple[nn.Module, nn.Module]:
    """Source and target with equal weights, and statistics that are not those of the batch."""
    torch.manual_seed(0)
    source = NETWORKS[name]()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return copy.deepcopy(source), source.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_delta_is_zero_where_the_target_starts_although_it_is_in_train_mode(name):
    """Defect 3: source in eval mode, target in train mode."""
    target, source = started(name)
    taps = TAPS if name == "conv_net" else "auto"
    x = torch.randn(2, 3, 32, 32)
    before = statistics(target)
    penalties = [Delta(taps=taps, strength=1.0), L2SP(strength=1.0)]
    with Regularizer(target, source, penalties) as regularizer:
        regularizer.calibrate([x])
        for _ in range(2):
            target.train()
            target(x)
            terms = regularizer(x)
            assert 0 <= terms.values["delta"].item() < 1e-10  # rounding, where batch norm is fused
            assert terms.values["l2sp"].item() == 0
            assert target.training
    assert unchanged(target, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_in_train_mode_is_an_option_and_breaks_that(name):
    target, source = started(name)
    taps = TAPS if name == "conv_net" else "auto"
    x = torch.randn(2, 3, 32, 32)
    before = statistics(target)
    delta = Delta(taps=taps, strength=1.0)
    with Regularizer(target, source, [delta], batch_norm="train") as regularizer:
        regularizer.calibrate([x])
        target.train()
        target(x)
        assert regularizer(x).total.item() > 0.01
    assert not unchanged(target, before)


# -------------------------------------------------------------------------- borrow and return


def test_train_flags_and_hooks_are_given_back():
    target, source = pair()
    source.train()
    source.norm1.eval()
    target.norm2.eval()
    ours, theirs = flags(target), flags(source)
    with Regularizer(target, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
        assert hooks_of(target) > 0
        target(images())
        assert not target.norm1.training
        regularizer(images())
        assert flags(source) == theirs
        assert hooks_of(source) == 0
    assert flags(target) == ours
    assert hooks_of(target) == 0


@pytest.mark.parametrize(
    ("at_first", "inside"),
    [
        *((True, inside) for inside in ((), ("train",), ("eval",), ("eval", "train"))),
        *((False, inside) for inside in ((), ("eval",), ("train",), ("train", "eval"))),
    ],
)
def test_the_mode_that_was_asked_for_last_is_that_of_every_layer(at_first, inside):
    target, source = pair()
    target.train(at_first)
    with Regularizer(target, source, [L2SP(strength=1.0)]) as regularizer:
        for mode in inside:
            getattr(target, mode)()
            target(images())
            regularizer(images())
            assert target.training == (mode == "train")
            assert not target.norm1.training
    last = inside[-1] == "train" if inside else at_first
    assert set(flags(target)) == {last}


@pytest.mark.parametrize("place", ["context", "target", "source"])
def test_everything_is_given_back_after_an_exception(place):
    target, source = pair()
    source.train()
    ours, theirs, before = flags(target), flags(source), statistics(source)
    too_few = torch.zeros(1, 2, 8, 8)  # channels

    def use(regularizer):
        target(too_few if place == "target" else images())
        regularizer(too_few if place == "source" else images())
        raise RuntimeError("channels")

    regularizer = Regularizer(target, source, [Delta(some_attention(), strength=1.0)])
    with pytest.raises(RuntimeError, match="channels"), regularizer:
        use(regularizer)
    assert (flags(target), flags(source)) == (ours, theirs)
    assert hooks_of(target) == hooks_of(source) == 0
    assert unchanged(source, before)


@pytest.mark.parametrize("failing", ["Taps.__enter__", "HeadInputs.__enter__"])
def test_no_hook_is_left_where_entering_fails(monkeypatch, failing):
    def fail(self):
        raise RuntimeError("on entry")

    target, source = pair()
    regularizer = Regularizer(target, source, [Delta(some_attention(), strength=1.0)])
    before = flags(target)
    with monkeypatch.context() as patch:
        patch.setattr(f"delta_transfer.regularizer.{failing}", fail)
        with pytest.raises(RuntimeError, match="on entry"):
            regularizer.__enter__()
    assert hooks_of(target) == hooks_of(source) == 0
    assert flags(target) == before
    with regularizer:  # usable again
        target(images())
        assert regularizer(images()).total.isfinite()
    assert hooks_of(target) == 0


def test_a_context_in_use_cannot_be_entered_but_one_that_ended_can():
    target, source = pair()
    regularizer = Regularizer(target, source, [Delta(some_attention(), strength=1.0)])
    for _ in range(2):
        with regularizer:
            with pytest.raises(RuntimeError, match="already in use"):
                regularizer.__enter__()
            target(images())
            regularizer(images())
    with pytest.raises(RuntimeError, match="no forward pass"):
        regularizer(images())


def test_the_state_is_that_of_the_penalties_alone():
    target, source = pair()
    regularizer = Regularizer(target, source, [Delta(taps=TAPS, strength=1.0), L2SP(strength=1.0)])
    assert not list(regularizer.parameters())
    regularizer.calibrate([images()])
    fresh = Regularizer(target, source, [Delta(taps=TAPS, strength=1.0), L2SP(strength=1.0)])
    fresh.load_state_dict(regularizer.state_dict())
    assert list(regularizer.state_dict()) == ["penalties.0.variance"]
    with fresh:
        target(images())
        fresh(images())


# --------------------------------------------------------------------------------- the source


def count_calls(net: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, module in net.named_modules():

        def hook(module, inputs, output, name=name):
            assert not torch.is_grad_enabled()
            assert not module.training
            counts[name] = counts.get(name, 0) + 1

        module.register_forward_hook(hook)
    return counts


def test_the_source_runs_only_if_its_features_are_needed():
    """Defect 8."""
    target, source = pair()
    calls = count_calls(source.train())
    with Regularizer(target, source, [L2SP(strength=1.0), L2("fc", strength=1.0)]) as regularizer:
        target(images())
        regularizer(images())
        regularizer.calibrate([images()])
    assert calls == {}


def test_the_source_runs_once_a_step_and_no_further_than_its_last_tap():
    target, source = pair()
    calls = count_calls(source.train())
    deltas = [Delta(taps=["norm1"], strength=1.0), Delta(taps=["norm1", "conv2"], strength=1.0)]
    with Regularizer(target, source, deltas) as regularizer:
        regularizer.calibrate([images()])
        calls.clear()
        target(images())
        target(images())
        assert calls == {}
        regularizer(images())
    assert calls == {"conv1": 1, "norm1": 1, "relu": 1, "pool": 1, "conv2": 1}


def test_the_source_is_run_as_a_fused_copy(monkeypatch):
    target, source = pair()
    expected = omega(target, source, images())
    seen = []
    monkeypatch.setattr(ConvNet, "forward", watch(ConvNet.forward, seen))
    with Regularizer(target, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
        for _ in range(3):
            target(images())
            found = regularizer(images()).total.item()
    assert found == pytest.approx(expected, rel=1e-5)
    runs = [net for net in seen if net is not target]
    assert runs[-1] is runs[-2] is not source
    assert isinstance(runs[-1].norm2, nn.Identity)
    assert isinstance(runs[-1].norm1, nn.BatchNorm2d)  # it is tapped
    assert isinstance(source.norm2, nn.BatchNorm2d)


def watch(forward, seen):
    def watched(self, x):
        seen.append(self)
        return forward(self, x)

    return watched


@pytest.mark.parametrize("cache", [1.0, 6 * 1024 / 2**30])
def test_what_came_before_is_not_run_again_as_far_as_it_fits(monkeypatch, cache):
    """The smaller one has room for some of the samples."""
    target, source = pair()
    penalties = [Delta(some_attention(), strength=1.0)]
    mixed = torch.cat([images(seed=2)[2:], images(seed=1)])
    expected = omega(target, source, mixed)
    seen = []
    with Regularizer(target, source, penalties, source_cache_gb=cache) as regularizer:
        for seed in (1, 2, 1):
            target(images(seed=seed))
            regularizer(images(seed=seed))
        monkeypatch.setattr(ConvNet, "forward", watch(ConvNet.forward, seen))
        target(mixed)
        found = regularizer(mixed).total.item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert seen[0] is target
    assert len(seen) == (1 if cache == 1.0 else 2)


@pytest.mark.parametrize("cache", [-1.0, float("inf"), float("nan")])
def test_a_cache_of_no_size_is_an_error(cache):
    target, source = pair()
    with pytest.raises(UserError, match="source_cache_gb must be"):
        Regularizer(target, source, [L2SP(strength=1.0)], source_cache_gb=cache)


def test_features_are_those_of_the_last_forward_pass():
    target, source = pair()
    with Regularizer(target, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
        target(images(seed=1))
        target(images(seed=2))
        found = regularizer(images(seed=2)).total.item()
    assert found == pytest.approx(omega(target, source, images(seed=2)), rel=1e-5)


class Looks(Penalty):
    """Keeps the step that it was given."""

    def __init__(self) -> None:
        super().__init__("looks", 1.0, taps=("conv3", "fc"))
        self.steps: list[Step] = []

    def forward(self, step: Step) -> torch.Tensor:
        self.steps.append(step)
        return self.strength * F.cross_entropy(step.logits, step.targets)


def test_a_penalty_of_ones_own_is_given_the_whole_step():
    target, source = pair()
    x, y, groups = images(), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    with Regularizer(target, source, [Looks()]) as regularizer:
        logits = target(x)
        total = regularizer(x, y, groups=groups).total
    (step,) = regularizer.penalties[0].steps
    assert step.target is target
    assert step.source is source
    assert (step.inputs is x, step.targets is y, step.groups is groups) == (True, True, True)
    assert step.logits is logits
    assert total.item() == F.cross_entropy(logits, y).item()
    for features in (step.target_features, step.source_features):
        assert {tap: f.shape for tap, f in features.items()} == {"conv3": (4, 1, 6), "fc": (4, 3)}
    assert step.target_features["conv3"].requires_grad
    assert not step.source_features["conv3"].requires_grad


class Weighted(Penalty):
    """A penalty of the user's own, with what `Delta` and `L2` need of the regularizer."""

    def __init__(self, module: str) -> None:
        super().__init__("weighted", 1.0, reduction="weights")
        self.module = module

    def forward(self, step: Step) -> torch.Tensor:
        return step.target.get_submodule(self.module).weight.sum()


class Scaled(Penalty):
    def __init__(self) -> None:
        super().__init__("scaled", 1.0, taps="conv?", needs_source=True, needs_variance=True)

    def forward(self, step: Step) -> torch.Tensor:
        return self.variance.sum()


def test_own_penalties_are_calibrated_and_checked_early_too():
    target, source = pair()
    with pytest.raises(AttributeError, match="head"):
        Regularizer(target, source, [Weighted("head")])
    assert not Regularizer(target, source, [Weighted("fc")]).needs_calibration
    penalties = [Scaled(), Delta(taps="conv?", strength=1.0)]
    regularizer = Regularizer(target, source, penalties)
    assert regularizer.needs_calibration
    regularizer.calibrate([images()])
    assert not regularizer.needs_calibration
    own, delta = regularizer.penalties
    assert torch.equal(own.variance, delta.variance)
    with regularizer:
        target(images())
        assert regularizer(images()).values["scaled"] == delta.variance.sum()


def test_penalties_of_the_caller_are_not_changed_and_serve_another_network():
    penalties = [Delta(taps="auto", strength=1.0), LDIFS("conv?")]
    first = Regularizer(*pair(), penalties)
    first.calibrate([images()])
    assert first.penalties[0].taps == ("norm1", "norm2", "conv3")
    assert [penalty.taps for penalty in penalties] == [("auto",), ("conv?",)]
    assert not penalties[0].is_calibrated
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    second = Regularizer(copy.deepcopy(source), source, penalties[:1])
    assert second.penalties[0].taps == ("0",)
    assert second.needs_calibration


class Referring(Penalty):
    """Refers to both networks and to parts of them, without registering any of them."""

    def __init__(self, target: nn.Module, source: nn.Module) -> None:
        super().__init__("referring", 1.0)
        self.networks = (target, source)
        self.parts = {"layer": target.conv1, "source layer": source.conv1}
        self.tensors = [target.fc.weight, target.norm1.running_mean, source.fc.weight]
        self.seen: list[Step] = []

    def forward(self, step: Step) -> torch.Tensor:
        return self.networks[0].fc.weight.sum()


@pytest.mark.parametrize("wrapped", [False, True])
def test_copies_of_penalties_refer_to_the_networks_themselves(wrapped):
    target, source = pair()
    wrapper = nn.DataParallel(target) if wrapped else target
    penalty = Referring(target, source)
    penalty.networks += (wrapper,)
    with Regularizer(wrapper, source, [penalty]) as regularizer:
        target(images())
        regularizer(images()).total.backward()
    (own,) = regularizer.penalties
    assert own is not penalty
    assert own.seen is not penalty.seen  # what is not of the networks is copied
    for found, expected in zip(own.networks, (target, source, wrapper), strict=True):
        assert found is expected
    assert own.parts["layer"] is target.conv1
    assert own.parts["source layer"] is source.conv1
    for found, expected in zip(own.tensors, penalty.tensors, strict=True):
        assert found is expected
    assert torch.equal(target.fc.weight.grad, torch.ones_like(target.fc.weight))
    assert list(regularizer.parameters()) == []


def test_copies_of_penalties_share_their_parameters():
    classifier = nn.Linear(6, 3)
    penalty = LwF(classifier, head="fc")
    regularizer = Regularizer(*pair(), [penalty])
    ours, theirs = list(regularizer.parameters()), list(penalty.parameters())
    assert len(ours) == len(theirs) == 4
    assert all(one is other for one, other in zip(ours, theirs, strict=True))


# -------------------------------------------------------------------------------- calibration


def test_calibration_is_numpys_variance_over_all_samples():
    """Defect 9: a short last batch counts as what it is."""
    target, source = pair()
    regularizer = Regularizer(target, source.train(), [Delta(taps=TAPS, strength=1.0)])
    x = images(7)
    batches = [x[:3], (x[3:6], torch.zeros(3)), [x[6:], torch.zeros(1)]]
    before = statistics(source)
    regularizer.calibrate(batches)
    assert unchanged(source, before)
    assert all(flags(source))
    features = reference.hooked(copy.deepcopy(source).eval(), TAPS, x)[1]
    expected = [
        features[tap].detach().numpy().astype(np.float64).var(axis=(0, 2, 3)).mean() for tap in TAPS
    ]
    assert regularizer.penalties[0].variance.tolist() == pytest.approx(expected, rel=1e-5)


def test_calibration_is_for_deltas_without_attention():
    target, source = pair()
    given = Delta(some_attention(), strength=1.0)
    regularizer = Regularizer(target, source, [given, Delta(taps="conv2", strength=1.0)])
    regularizer.calibrate([images()])
    assert regularizer.penalties[0].variance.tolist() == list(VARIANCE.values())
    with regularizer:
        target(images())
        assert regularizer(images()).total.isfinite()
    with pytest.raises(DataError, match="no features to measure: the loader is empty"):
        regularizer.calibrate([])


def test_calibration_and_attention_measure_the_same():
    target, source = pair()
    batches = [(images(7)[i : i + 3], torch.arange(7)[i : i + 3] % 3) for i in (0, 3, 6)]
    attention = estimate_attention(source, batches, num_outputs=3, taps=TAPS)
    regularizer = Regularizer(target, source, [Delta(taps=TAPS, strength=1.0)])
    regularizer.calibrate(batches)
    expected = [attention.variance[tap].item() for tap in TAPS]
    assert regularizer.penalties[0].variance.tolist() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------- errors


def test_wrong_names_fail_at_once():
    target, source = pair()
    with pytest.raises(UserError, match="unknown tap 'conv9'"):
        Regularizer(target, source, [Delta(taps="conv9", strength=1.0)])
    with pytest.raises(UserError, match="unknown module 'head'"):
        Regularizer(target, source, [L2("head", strength=1.0)])
    target.conv3 = nn.Sequential(target.conv3)
    with pytest.raises(UserError, match=r"unknown tap 'conv3\.0'"):
        Regularizer(target, source, [Delta(taps="conv3.0", strength=1.0)])
    with pytest.raises(UserError, match="batch_norm must be 'frozen' or 'train', got 'eval'"):
        Regularizer(target, source, [], batch_norm="eval")
    assert hooks_of(target) == hooks_of(source) == 0


def test_networks_that_share_parameters_are_an_error():
    target, source = pair()
    with pytest.raises(UserError, match="share parameters"):
        Regularizer(target, target, [L2SP(strength=1.0)])
    source.conv1 = target.conv1
    with pytest.raises(UserError, match=r"share parameters \(conv1.weight\).*deepcopy"):
        Regularizer(target, source, [L2SP(strength=1.0)])


def test_a_missing_source_is_an_error_for_those_who_need_it():
    target, _ = pair()
    penalties = [Delta(taps="conv1", strength=1.0), L2("fc", strength=1.0), L2SP(strength=1.0)]
    with pytest.raises(UserError, match="delta, l2sp needs the source network"):
        Regularizer(target, None, penalties)
    with pytest.raises(UserError, match="delta needs the source network"):
        Regularizer(target, None, [Delta.official(taps="conv1")])
    with Regularizer(target, None, [L2("fc", strength=1.0)]) as regularizer:
        target(images())
        assert regularizer(images()).total.item() > 0


def test_other_inputs_than_the_targets_are_an_error():
    target, source = pair()
    with Regularizer(target, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
        with pytest.raises(RuntimeError, match="no forward pass was recorded"):
            regularizer(images())
        target(images(4))
        for other, shape in ((images(3), (3, 64, 4)), (torch.zeros(4, 3, 12, 12), (4, 144, 4))):
            message = (
                f"tap 'norm1': the target's features (4, 64, 4) and the source's {shape} differ in "
                "shape: call the regularizer with the inputs"
            )
            with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
                regularizer(other)


def test_no_calibration_is_an_error():
    target, source = pair()
    with Regularizer(target, source, [Delta(taps=TAPS, strength=1.0)]) as regularizer:
        target(images())
        with pytest.raises(UserError, match="not calibrated"):
            regularizer(images())


# ------------------------------------------------------------------------------ training loops


def test_the_training_loop_of_the_guide_lowers_the_loss():
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", pretrained=False)
    target = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    start = {n: p for n, p in source.state_dict().items() if not n.startswith("fc.")}
    target.load_state_dict(start, strict=False)
    y = torch.arange(12) % 3
    x = torch.randn(12, 3, 32, 32) + y.view(-1, 1, 1, 1)
    batches = [(x[i : i + 5], y[i : i + 5]) for i in (0, 5, 10)]
    before = statistics(target)
    attention = estimate_attention(
        source, batches, num_outputs=3, head="auto", taps="auto", loss=F.cross_entropy
    )
    optimizer = torch.optim.AdamW(target.parameters(), lr=3e-3)
    penalties = [Delta(attention, strength=3.0), L2("fc", strength=0.01)]
    losses = []
    with Regularizer(target, source, penalties) as regularizer:
        for _ in range(8):
            target.train()
            total = 0.0
            for inputs, labels in batches:
                loss = loss_of(regularizer, target, inputs, labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total += loss.item()
            losses.append(total)
            target.eval()
            with torch.no_grad():
                target(x)  # validation in between
    assert losses[-1] < 0.8 * losses[0]
    assert unchanged(target, before)


def loss_of(regularizer, target, inputs, labels):
    return F.cross_entropy(target(inputs), labels) + regularizer(inputs, labels).total


def test_a_strong_delta_holds_the_features():
    def trained(strength):
        target, source = pair()
        target.load_state_dict(source.state_dict())
        optimizer = torch.optim.AdamW(target.parameters(), lr=0.01)
        x, y = images(6), torch.arange(6) % 3
        with Regularizer(target, source, [Delta(some_attention(), strength=strength)]) as r:
            for _ in range(20):
                optimizer.zero_grad()
                loss_of(r, target, x, y).backward()
                optimizer.step()
        return omega(target, source, x)

    free, held = trained(0.0), trained(10.0)
    assert held < 0.2 * free


def test_gradients_accumulate():
    def gradients(parts):
        target, source = pair()
        with Regularizer(target, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
            for x in images(4).split(parts):
                target(x)
                (regularizer(x).total * len(x) / 4).backward()
        return [p.grad for p in target.parameters() if p.grad is not None]

    for whole, summed in zip(gradients(4), gradients(2), strict=True):
        assert torch.allclose(whole, summed, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ precision and wrapped targets


@pytest.mark.parametrize("outside", [False, True])
def test_autocast_also_where_the_regularizer_is_called_outside_of_it(outside):
    target, source = pair()
    start = copy.deepcopy(source).train()
    penalties = [Delta(some_attention(), strength=1.0), L2SP(strength=1.0), L2("fc", strength=1.0)]
    for net, close in ((start, True), (target, False)):
        with Regularizer(net, source, penalties) as regularizer:
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(images())
                terms = regularizer(images())
            if outside:
                terms = regularizer(images())
            assert logits.dtype == torch.bfloat16
            assert terms.total.dtype == torch.float32
            if close:  # both networks round alike
                assert terms.values["delta"].item() == 0
            else:
                expected = omega(net, source, images())
                assert terms.values["delta"].item() == pytest.approx(expected, rel=0.05)
                way = 0.5 * reference.squared_way(net, source)
                assert terms.values["l2sp"].item() == pytest.approx(way, rel=1e-5)
            terms.total.backward()
            assert net.conv1.weight.grad.isfinite().all()


def test_a_target_in_full_precision_is_compared_in_full_precision():
    target, source = pair()
    target.load_state_dict(source.state_dict())
    with Regularizer(target, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
        target(images())
        with torch.autocast("cpu", torch.bfloat16):
            assert 0 <= regularizer(images()).values["delta"].item() < 1e-10


@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_a_source_in_half_precision_is_near(monkeypatch, cache):
    target, source = pair()
    expected = omega(target, source, images())
    penalties = [Delta(some_attention(), strength=1.0)]
    options = {"source_precision": "bfloat16", "source_cache_gb": cache}
    seen = []
    monkeypatch.setattr(ConvNet, "forward", watch(ConvNet.forward, seen))
    with Regularizer(target, source, penalties, **options) as regularizer:
        for _ in range(2):  # the second time from the cache, if there is one
            target(images())
            found = regularizer(images()).total
            assert found.dtype == torch.float32
            assert found.item() != pytest.approx(expected, rel=1e-6)
            assert found.item() == pytest.approx(expected, rel=0.02)
    copies = [net for net in seen if net not in (target, source)]
    assert isinstance(copies[-1].norm2, nn.Identity)  # fused
    target.load_state_dict(source.state_dict())
    with Regularizer(target, source, penalties, **options) as regularizer:
        target(images())
        assert 0 < regularizer(images()).total.item() < 1e-3


def test_the_precision_of_the_source_means_nothing_under_autocast():
    target, source = pair()
    penalties = [Delta(some_attention(), strength=1.0)]
    found = []
    for precision in ("bfloat16", "float32"):
        with Regularizer(target, source, penalties, source_precision=precision) as regularizer:
            with torch.autocast("cpu", torch.bfloat16):
                target(images())
                found.append(regularizer(images()).total)
            found.append(regularizer(images()).total)
    assert all(torch.equal(found[0], other) for other in found)


def test_another_precision_of_the_source_is_an_error():
    target, source = pair()
    with pytest.raises(UserError, match="source_precision must be 'float32' or 'bfloat16', got 'h"):
        Regularizer(target, source, [L2SP(strength=1.0)], source_precision="half")


def check_gradients(model: nn.Module, target: nn.Module, source: nn.Module) -> None:
    """A wrapped target has the gradients of a plain one."""
    plain, plain_source = pair()
    x, y = images(), torch.arange(4) % 3
    for wrapped, net, start in ((plain, plain, plain_source), (model, target, source)):
        net.drop.p = 0.0
        penalties = [Delta(some_attention(), strength=1.0), L2SP(strength=0.1)]
        with Regularizer(wrapped, start, penalties) as regularizer:
            for _ in range(2):
                wrapped.zero_grad()
                loss_of(regularizer, wrapped, x, y).backward()
        assert hooks_of(net) == 0
    for expected, found in zip(plain.parameters(), target.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_ddp(tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        target, source = pair()
        check_gradients(DistributedDataParallel(target), target, source)
    finally:
        destroy_process_group()


def test_fabric_with_mixed_precision():
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    target, source = pair()
    target.load_state_dict(source.state_dict())
    optimizer = torch.optim.SGD(target.parameters(), lr=0.05)
    model, optimizer = fabric.setup(target, optimizer)
    x, y = images(), torch.arange(4) % 3
    with Regularizer(model, source, [Delta(some_attention(), strength=1.0)]) as regularizer:
        loss = F.cross_entropy(model(x), y)
        terms = regularizer(x)
        assert terms.total.item() == 0
        fabric.backward(loss + terms.total)
        optimizer.step()
        model(x)
        assert regularizer(x).total.item() > 0


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield lambda net: torch.compile(net, backend="eager")
    torch._dynamo.reset()


def test_compiled(compiler):
    target, source = pair()
    check_gradients(compiler(target), target, source)


def test_batch_norm_of_a_network_compiled_before_is_not_silently_in_train_mode(compiler):
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    target = copy.deepcopy(source)
    model = compiler(target)
    model(images())  # compiled without our hooks
    with Regularizer(model, source, [L2SP(strength=1.0)]) as regularizer:
        model.train()
        before = statistics(target)
        model(images())
        if not unchanged(target, before):  # PyTorch 2.15 does not look for new hooks
            with pytest.raises(RuntimeError, match="batch_norm='frozen'"):
                regularizer(images())


def test_a_target_whose_hooks_are_not_called_is_an_error():
    target, source = pair()
    with Regularizer(target, source, [L2SP(strength=1.0)]) as regularizer:
        target.train()
        target.forward(images())
        with pytest.raises(RuntimeError, match="batch_norm='frozen'"):
            regularizer(images())


def test_a_running_average_made_inside_does_not_disturb():
    target, source = pair()
    delta = Delta(some_attention(), strength=1.0)
    with Regularizer(target, source, [delta, Looks()]) as regularizer:
        logits = target(images())
        average = copy.deepcopy(target)
        average(images(seed=8))
        terms = regularizer(images(), torch.zeros(4, dtype=torch.long))
    assert regularizer.penalties[1].steps[0].logits is logits
    found = terms.values["delta"].item()
    assert found == pytest.approx(omega(target, source, images()), rel=1e-5)


def test_calibrate_reads_no_image_where_no_penalty_needs_it():
    def unread():
        pytest.fail("the loader was read")
        yield

    source = conv_net()
    target = copy.deepcopy(source)
    Regularizer(target, source, [L2SP(strength=1.0)]).calibrate(unread())
    tap = next(name for name, module in source.named_modules() if isinstance(module, nn.Conv2d))
    official = Delta.official(taps=[tap])
    Regularizer(target, source, [official]).calibrate(unread())

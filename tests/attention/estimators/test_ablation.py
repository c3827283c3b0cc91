"""Exact attention against the loop over channels, on every kind of network."""

import gc
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from delta_transfer.attention.estimators.ablation import ExactScorer, naive_scores
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import resolve_taps
from tests import reference
from tests.features.test_stages import TABLE, network
from tests.networks import conv_net, hooks_of

TAPS = ("conv1", "norm1", "conv3")


def moved(net: nn.Module) -> nn.Module:
    """In eval mode, with random weights, biases and statistics: nothing is zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=generator)
    return net.eval().requires_grad_(False)


def images(count=3, size=8, channels=3, seed=0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def loop(net, x, y, tap, dim, channels, loss=F.cross_entropy) -> Tensor:
    """Sample by sample and channel by channel, with a plain hook: `[B, len(channels)]`."""
    rows = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        plain = loss(net(image), label)
        grown = []
        for channel in channels:

            def off(module, args, output, channel=channel):
                kept = torch.arange(output.shape[dim]) != channel
                return output * kept.view([-1 if d == dim else 1 for d in range(output.ndim)])

            handle = net.get_submodule(tap).register_forward_hook(off)
            grown.append(loss(net(image), label) - plain)
            handle.remove()
        rows.append(torch.stack(grown))
    return torch.stack(rows)


def check(net, x, y, taps, channels_of, dim_of, tolerance=1e-8) -> ExactScorer:
    """Exact scores of every sample are those of the loop; nothing was left to the slow path."""
    exact = ExactScorer(net, taps=taps, loss=F.cross_entropy)
    found = exact(x, y)
    assert exact.notes == ()
    for tap in taps:
        channels = channels_of(found.scores[tap].shape[1])
        expected = loop(net, x, y, tap, dim_of(tap), channels)
        scale = found.scores[tap].abs().max()
        assert scale > 1e-6
        assert (found.scores[tap][:, channels] - expected).abs().max() <= tolerance * scale
    return exact


# ------------------------------------------------------------------------------ real networks

NAMED = {
    "pypi/efficientnet_lite0": 64,
    "resnet50": 32,
    "convnext_tiny": 32,
    "vit_small_patch16_224": 32,
    "swin_tiny_patch4_window7_224": 56,
}
FAST = {"pypi/efficientnet_lite0", "vit_small_patch16_224"}
SIZES = {"inception_v3": 96, "torchvision/vit_b_16": 224, "torchvision/swin_v2_t": 64}


def build(name: str) -> nn.Module:
    if name.startswith("pypi/"):
        return load_backbone(name, num_outputs=5, pretrained=False).module
    if "vit_small" in name or "swin_tiny" in name:
        return timm.create_model(name, img_size=NAMED[name], num_classes=5)
    return timm.create_model(name, num_classes=5) if name in NAMED else network(name)


def ends_and_middle(width: int) -> list[int]:
    return [0, width // 2, width - 1]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in {**NAMED, **TABLE}],
)
def test_real_networks_tap_by_tap(name):
    net = moved(build(name)).double()
    size = NAMED.get(name) or SIZES.get(name, 64)
    x, y = images(count=2 if "lite" in name else 1, size=size)
    taps = auto_taps(net, example=x[:1])
    dims = {tap: channel_dim(net, tap, x) for tap in taps}
    check(net, x, y, taps, ends_and_middle, dims.__getitem__)


def channel_dim(net: nn.Module, tap: str, x: Tensor) -> int:
    """Maps of these networks are square: the channels are the size that stands alone."""
    shape = reference.hooked(net, [tap], x)[1][tap].shape
    if len(shape) == 3:
        return 2
    return 1 if shape[2] == shape[3] else 3


def test_the_authors_taps_inside_blocks():
    net = moved(timm.create_model("resnet10t", num_classes=3)).double()
    x, y = images(size=32)
    taps = ("layer1.0.conv1", "layer2.0.conv2", "layer3.0.downsample.1", "layer4.0.conv2")
    check(net, x, y, taps, ends_and_middle, lambda tap: 1)


# -------------------------------------------------------------------------- kinds of networks


class Last(nn.Module):
    """Channels last, or tokens."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.body, self.mix, self.fc = nn.Linear(3, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = self.body(x.flatten(1, 2) if self.tokens else x)
        x = torch.tanh(self.mix(x))
        return self.fc(x.flatten(1, -2).mean(dim=1))


class Windows(nn.Module):
    """Attention in windows that are part of the batch, and positions first in part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)  # positions first
        self.place = nn.Parameter(torch.randn(16, 1, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, c, h, w = x.shape
        windows = x.view(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(4 * b, -1, c)
        tokens = self.norm(windows).transpose(0, 1) + self.place
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.fc(tokens.transpose(0, 1).reshape(b, -1, c).amax(dim=1))


class Branches(nn.Module):
    """Parallel branches, of which one does not see the tap, and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(5, 4, 1)
        self.fc = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        left, right = self.norm(self.left(x)), self.right(x)
        left = left * torch.sigmoid(self.gate(right.mean(dim=(2, 3), keepdim=True)))
        return self.fc(torch.cat([left, right], dim=1).amax(dim=(2, 3)))


class InPlace(nn.Module):
    """Values that are changed in place, through views too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x.mul_(2).relu_()
        x[:, :2] += 1
        mask = x.new_zeros(4)
        mask[1:] = 1.5
        y = self.next(x)
        y += mask.view(1, 4, 1, 1)
        y.flatten(2).tanh_()
        return self.fc(y.mean(dim=(2, 3)))


class Strided(nn.Module):
    """Pointwise layers that skip positions, have a border, or groups: of these one is an update."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.skip = nn.Conv2d(4, 5, 1, stride=2)
        self.border = nn.Conv2d(4, 5, 1, stride=(2, 3), padding=1)
        self.groups = nn.Conv2d(4, 6, 1, groups=2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x))
        layers = (self.skip, self.border, self.groups)
        return self.fc(torch.cat([torch.tanh(f(x)).mean(dim=(2, 3)) for f in layers], dim=1))


@pytest.mark.parametrize(
    ("make", "tap", "dim"),
    [
        (lambda: Last(tokens=False), "body", 3),
        (lambda: Last(tokens=True), "body", 2),
        (Windows, "embed", 1),
        (Windows, "norm", 2),
        (Branches, "left", 1),
        (Branches, "right", 1),
        (Strided, "body", 1),
        (InPlace, "conv", 1),
        (InPlace, "next", 1),
    ],
)
def test_kinds_of_networks(make, tap, dim):
    torch.manual_seed(0)
    net = moved(make()).double()
    x, y = images()
    check(net, x, y, [tap], lambda width: list(range(width)), lambda tap: dim, 1e-10)


def test_taps_that_lead_nowhere_or_are_the_logits_but_for_a_scale():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aside, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

        def forward(self, x):
            self.aside(x)
            return self.scale * self.fc(torch.tanh(self.body(x)).mean(dim=(2, 3)))

    torch.manual_seed(0)
    net = moved(Ends()).double()
    x, y = images()
    check(net, x, y, ["fc"], lambda width: list(range(width)), lambda tap: 1, 1e-10)
    found = ExactScorer(net, taps=["aside", "body"], loss=F.cross_entropy)(x, y)
    assert torch.equal(found.scores["aside"], torch.zeros(3, 4, dtype=torch.float64))
    expected = loop(net, x, y, "body", 1, range(4))
    assert torch.allclose(found.scores["body"], expected, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_samples(count):
    net = moved(conv_net()).double()
    x, y = images(count)
    check(net, x, y, TAPS, lambda width: list(range(width)), lambda tap: 1, 1e-10)


def test_one_instance_scores_batches_of_different_sizes():
    net = moved(conv_net()).double()
    x, y = images(7)
    exact = ExactScorer(net, taps=TAPS, loss=F.cross_entropy)
    whole = ExactScorer(net, taps=TAPS, loss=F.cross_entropy)(x, y)
    for part in (slice(0, 2), slice(2, 7), slice(0, 1)):
        found = exact(x[part], y[part])
        for tap in TAPS:
            assert torch.allclose(found.scores[tap], whole.scores[tap][part], atol=1e-12)
            assert torch.allclose(found.features[tap], whole.features[tap][part], atol=1e-12)


def test_other_losses_and_one_logit():
    net = moved(conv_net(outputs=1)).double()
    x, _ = images()
    y = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits
    found = ExactScorer(net, taps=["conv1"], loss=loss)(x, y)
    expected = loop(net, x, y, "conv1", 1, range(4), loss)
    assert torch.allclose(found.scores["conv1"], expected, atol=1e-12)


def test_the_slow_loop_is_the_reference():
    net = moved(conv_net()).double()
    x, y = images()
    found = naive_scores(net, x, y, taps=TAPS, loss=F.cross_entropy)
    some = naive_scores(
        net, x, y, taps=TAPS, loss=F.cross_entropy, channels={t: torch.tensor([2, 0]) for t in TAPS}
    )
    for tap in TAPS:
        expected = loop(net, x, y, tap, 1, range(found.scores[tap].shape[1]))
        assert torch.allclose(found.scores[tap], expected, atol=1e-12)
        assert torch.equal(some.scores[tap], found.scores[tap][:, [2, 0]])


# ------------------------------------------------------------------ nothing is computed in vain


class Counted(TorchDispatchMode):
    """How many rows each kind of operation was given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor) and args[0].ndim:
            self.rows.setdefault(func.overloadpacket.__name__, []).append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_what_lies_before_the_tap_is_computed_once_and_a_channelwise_end_in_closed_form():
    net = moved(conv_net()).double()
    x, y = images(4)
    exact = ExactScorer(net, taps=["conv3"], loss=F.cross_entropy)
    exact(x, y)
    with Counted() as counted:
        exact(x, y)
    # From conv3 to the head all is channel-wise: three convolutions of 4 samples, one head.
    assert counted.rows["conv2d"] == [4, 4, 4]
    assert counted.rows["linear"] == [4]
    exact = ExactScorer(net, taps=["conv2"], loss=F.cross_entropy)
    exact(x, y)
    with Counted() as counted:
        exact(x, y)
    # After conv2 only conv3 is computed for the 4 channels' copies.
    assert counted.rows["conv2d"] == [4, 4, 4, 16]


def test_a_convolution_that_mixes_two_weak_channels_is_not_taken_for_channelwise():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(6, 6, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).double()
    with torch.no_grad():
        net[0].weight[4:] *= 0.01  # the trial ablates the three channels with the largest features
        net[1].weight.copy_(torch.eye(6)[:, :, None, None])
        net[1].weight[5, 4] = 30.0
    x, y = images(4)
    check(
        net.eval().requires_grad_(False),
        x,
        y,
        ["0"],
        lambda width: list(range(width)),
        lambda tap: 1,
    )


class Gated(nn.Module):
    """A network whose channels are all scaled by some of them."""

    def __init__(self, gate) -> None:
        super().__init__()
        self.body, self.gate, self.fc = nn.Conv2d(3, 6, 1), gate, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.fc((y * self.gate(y)).mean((2, 3)))


@pytest.mark.parametrize(
    "gate",
    [
        lambda y: y.amax(1, keepdim=True).sigmoid(),
        lambda y: y[:, 4:5].sigmoid(),
        lambda y: y.mean(1, keepdim=True).sigmoid(),
        lambda y: y.amin(dim=(2, 3), keepdim=True).sigmoid(),
    ],
    ids=["largest", "fifth", "mean", "own"],
)
def test_a_gate_by_other_channels_is_not_channelwise(gate):
    torch.manual_seed(0)
    net = Gated(gate).double()
    with torch.no_grad():
        net.body.weight[4:] *= 0.3
    x, y = images(4)
    check(net.eval().requires_grad_(False), x, y, ["body"], lambda n: list(range(n)), lambda tap: 1)


def test_depthwise_layers_and_their_norms_are_left_behind():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(6),
        nn.Linear(6, 3),
    )
    net = moved(net).double()
    x, y = images()
    exact = check(net, x, y, ["0"], lambda width: list(range(width)), lambda tap: 1, 1e-10)
    with Counted() as counted:
        exact(x, y)
    assert counted.rows["conv2d"] == [3, 3, 3]  # twice on, once with all channels off
    assert counted.rows["layer_norm"] == [3, 18]


# ------------------------------------------------------------- where it cannot be done, it says so


def test_a_network_that_mixes_samples_is_left_to_the_slow_loop(caplog):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.next = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x = self.next(self.body(x))
            return self.fc((x - x.mean(dim=0)).square().mean(dim=(2, 3)))

    torch.manual_seed(0)
    net = moved(Mixing()).double()
    x, y = images(4)
    exact = ExactScorer(net, taps=["body"], loss=F.cross_entropy)
    found = exact(x, y)
    assert "does not compute the same" in exact.notes[0]
    assert exact.notes[0] in caplog.text
    expected = naive_scores(net, x, y, taps=["body"], loss=F.cross_entropy)
    # As some processors round, the two differ in the last digit.
    torch.testing.assert_close(found.scores["body"], expected.scores["body"], rtol=1e-9, atol=1e-12)


def test_a_network_that_decides_by_its_data_is_left_to_the_slow_loop():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.body(x)
            return self.fc(x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3)))

    torch.manual_seed(0)
    net = moved(Deciding()).double()
    x, y = images(1)
    exact = ExactScorer(net, taps=["body"], loss=F.cross_entropy)
    found = exact(x, y)
    assert "cannot be captured as a graph" in exact.notes[0]
    expected = loop(net, x, y, "body", 1, range(4))
    assert torch.allclose(found.scores["body"], expected, atol=1e-12)


def test_a_few_channels_are_compared_with_the_slow_loop(monkeypatch):
    """A wrong graph is noticed: here the update of the head has the wrong sign."""
    from delta_transfer.attention.graph import downstream

    right = downstream._rank_one_update
    monkeypatch.setattr(
        downstream,
        "_rank_one_update",
        lambda graph, node, output, delta, *rest: right(graph, node, output, -delta, *rest),
    )
    net = moved(conv_net()).double()
    x, y = images()
    exact = ExactScorer(net, taps=["conv3"], loss=F.cross_entropy)
    found = exact(x, y)
    assert "does not compute the same" in exact.notes[0]
    assert torch.allclose(found.scores["conv3"], loop(net, x, y, "conv3", 1, range(6)), atol=1e-12)


# ------------------------------------------------------------------------------------- memory


def tensors(values) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Allocated(TorchDispatchMode):
    """The most bytes that tensors made inside took up at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tensors([args, kwargs])}
        for tensor in tensors([result]):
            if tensor.untyped_storage().data_ptr() not in given:  # no view of what was there
                self.take(tensor.untyped_storage())
        return result

    def take(self, storage) -> None:
        address = storage.data_ptr()
        if storage.nbytes() and address not in self.known:
            self.known.add(address)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.give_back, address, storage.nbytes())

    def give_back(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_efficientnet", {}),
        pytest.param(
            *("vit_tiny_patch16_224", {"img_size": 32, "depth": 3}), marks=pytest.mark.slow
        ),
    ],
)
def test_memory_stays_within_what_is_given(name, options):
    net = moved(timm.create_model(name, num_classes=5, **options))
    taps = resolve_taps(net, "auto")
    x, y = (part.float() if part.is_floating_point() else part for part in images(8, 32))
    whole = ExactScorer(net, taps=taps, loss=F.cross_entropy)(x, y)
    for memory in (2**20, 4 * 2**20):
        exact = ExactScorer(net, taps=taps, loss=F.cross_entropy, memory=memory)
        exact(x, y)
        gc.collect()
        with Allocated() as allocated:
            found = exact(x, y)
        assert 0.4 * memory < allocated.most <= memory
        for tap in taps:
            scale = whole.scores[tap].abs().max()
            assert (found.scores[tap] - whole.scores[tap]).abs().max() < 1e-3 * scale


def test_too_little_memory_says_how_much_it_takes():
    net = moved(conv_net())
    x, y = images(4)
    with pytest.raises(UserError, match=r"memory of 0\.0 MiB is too little for one sample, which"):
        ExactScorer(net, taps=TAPS, loss=F.cross_entropy, memory=100)(x.float(), y)


# ---------------------------------------------------------------------------- the rest


def test_bfloat16_reports_the_error_that_it_causes():
    net = moved(conv_net())
    x, y = images(4)
    fine = ExactScorer(net, taps=TAPS, loss=F.cross_entropy)(x.float(), y)
    exact = ExactScorer(net, taps=TAPS, loss=F.cross_entropy, precision="bfloat16")
    rough = exact(x.float(), y)
    (note,) = exact.notes
    assert note.startswith("bfloat16: scores differ from float32 by up to ")
    assert all(f"% at {tap}" in note for tap in TAPS)
    for tap in TAPS:
        difference = (rough.scores[tap] - fine.scores[tap]).abs().max()
        assert 0 < difference < 0.2 * fine.scores[tap].abs().max()


def test_progress_counts_pairs_of_samples_and_channels():
    net = moved(conv_net()).double()
    x, y = images(5)
    steps: list[int] = []
    ExactScorer(net, taps=TAPS, loss=F.cross_entropy)(x, y, progress=steps.append)
    assert sum(steps) == 5 * (4 + 4 + 6)
    steps.clear()
    naive_scores(net, x, y, taps=TAPS, loss=F.cross_entropy, progress=steps.append)
    assert sum(steps) == 5 * (4 + 4 + 6)


def test_the_network_is_left_as_it_was():
    net = moved(conv_net())
    net.conv1.weight.requires_grad_(True)
    before = {name: (p, p.clone(), p.stride()) for name, p in net.named_parameters()}
    x, y = images()
    ExactScorer(net, taps=TAPS, loss=F.cross_entropy)(x.float(), y)
    assert hooks_of(net) == 0
    for name, parameter in net.named_parameters():
        same, values, stride = before[name]
        assert parameter is same
        assert torch.equal(parameter, values)
        assert parameter.stride() == stride
        assert parameter.requires_grad == (name == "conv1.weight")
        assert parameter.grad is None
    assert not any(module.training for module in net.modules())

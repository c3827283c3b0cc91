import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from delta_transfer.errors import UserError
from delta_transfer.features.stages import find_channel_dim, output_module
from delta_transfer.features.taps import Taps, resolve_taps
from tests import reference
from tests.networks import ConvNet, conv_net, hooks_of

TAPS = ("conv1", "norm1", "pool", "norm2", "conv3", "fc")
CHANGED_IN_PLACE = {"norm1", "norm2"}


def images(count=2, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator)


def equal(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


class Arrange(nn.Module):
    """Returns its input in another layout, through a layer of its own."""

    def __init__(self, layout: str, channels: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.layout = layout

    def forward(self, x):
        x = self.conv(x)
        return {
            "NCHW": lambda: x,
            "NHWC": lambda: x.permute(0, 2, 3, 1),
            "tokens": lambda: x.flatten(2).transpose(1, 2),
            "rows": lambda: x.mean(dim=(2, 3)),
        }[self.layout]()


class Net(nn.Module):
    """Calls a function with its modules."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_what_a_plain_hook_copies_in_the_first_and_later_passes(training):
    net = conv_net()
    net.drop.p = 0.0
    net.train(training)
    with Taps(net, TAPS) as taps:
        for seed in range(3):
            x = images(seed=seed)
            expected, copies = reference.hooked(copy.deepcopy(net), TAPS, x)
            assert torch.equal(net(x), expected)
            assert equal(taps.outputs(), copies)
    assert taps.names == TAPS
    assert taps.channel_dims == dict.fromkeys(TAPS, 1)
    # Only what the network does change in place is still copied.
    assert taps._copied == CHANGED_IN_PLACE


def test_gradients_through_taps_are_those_without_them():
    plain, tapped = conv_net(), conv_net()
    with Taps(tapped, TAPS) as taps:
        for seed in range(3):
            x = images(seed=seed)
            result, copies = reference.hooked(plain, TAPS, x)
            loss = result.square().sum() + sum(copy.square().sum() for copy in copies.values())
            loss.backward()
            result = tapped(x)
            outputs = taps.outputs().values()
            loss = result.square().sum() + sum(output.square().sum() for output in outputs)
            loss.backward()
    for expected, found in zip(plain.parameters(), tapped.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens", "rows"])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 9), (9, 5), (1, 1)])
def test_layouts_and_their_channels_are_found(layout, size):
    net = nn.Sequential(Arrange(layout, channels=5))
    x = images(2, *size)
    with Taps(net, "0") as taps:
        expected = net(x)
        assert equal(taps.outputs(), {"0": expected})
    assert taps.channel_dims == {"0": {"NHWC": 3, "tokens": 2}.get(layout, 1)}


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64)])
def test_channels_are_found_where_there_are_as_many_as_rows_or_columns(size):
    """ResNet-18's first stage on a 256 x 384 image is [B, 64, 64, 96]."""
    net = nn.Sequential(nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU())
    with Taps(net, ["0", "1"]) as taps, torch.no_grad():
        net(images(1, 2 * size[0], 2 * size[1]))
    assert taps.channel_dims["0"] == 1
    assert taps.channel_dims["1"] == 1


def test_channels_are_found_in_what_a_pre_hook_makes_of_the_image():
    net = nn.Sequential(nn.Conv2d(3, 64, 3, stride=2, padding=1))
    net.register_forward_pre_hook(lambda module, inputs: inputs[0].transpose(2, 3))
    with Taps(net, ["0"]) as taps, torch.no_grad():
        net(images(1, 128, 192))
    assert taps.outputs()["0"].shape == (1, 64, 96, 64)
    assert taps.channel_dims == {"0": 1}


def test_channels_are_found_in_what_holds_narrower_layers():
    """A dense block returns all it has made, its last layer is as wide as the map."""
    block = Net(lambda self, x: torch.cat([x, self.conv(x)], dim=1), conv=nn.Conv2d(3, 8, 1))
    assert find_channel_dim(block, torch.zeros(1, 11, 8, 8)) == 1
    assert find_channel_dim(block, torch.zeros(1, 11, 12, 8), image_size=(24, 16)) == 1


def test_images_of_other_sizes_follow_one_another():
    net = conv_net()
    with Taps(net, TAPS) as taps, torch.no_grad():
        for height, width in ((8, 8), (10, 14), (16, 6)):
            x = images(1, height, width)
            net(x)
            assert equal(taps.outputs(), reference.hooked(conv_net(), TAPS, x)[1])


def test_inference_mode_and_no_grad_are_recorded_too():
    net = conv_net()
    expected = reference.hooked(conv_net(), TAPS, images())[1]
    for context in (torch.inference_mode, torch.no_grad):
        with Taps(net, TAPS) as taps, context():
            for _ in range(2):
                net(images())
                assert equal(taps.outputs(), expected)


@pytest.mark.parametrize("how", ["call", "record"])
def test_only_what_is_changed_in_place_is_copied_once_that_is_known(how):
    """Else the network goes on with the recorded tensor itself."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)
    )
    given = {}
    for name, user in (("0", net[1]), ("1", net[2])):
        user.register_forward_pre_hook(lambda _, x, name=name: given.update({name: x[0]}))
    with Taps(net, ["0", "1", "3"]) as taps:
        for _ in range(2):
            found = taps.record(images()) if how == "record" else net(images())
        outputs = taps.outputs()
    assert given["0"] is outputs["0"]
    assert given["1"] is not outputs["1"]
    assert torch.equal(given["1"], outputs["1"].relu())
    assert (found is outputs["3"]) == (how == "call")


def test_a_pass_that_failed_has_not_shown_what_is_changed_in_place():
    def fail(self, x):
        if self.broken:
            raise ZeroDivisionError
        return x

    net = Net(lambda self, x: self.b(self.a(x)).relu_(), a=nn.Conv2d(3, 4, 1), b=Net(fail))
    net.b.broken = True
    with Taps(net, "a") as taps:
        with pytest.raises(ZeroDivisionError):
            net(images())
        net.b.broken = False
        net(images())
        assert equal(taps.outputs(), {"a": net.a(images())})


def test_a_change_in_place_that_comes_later_is_noticed():
    net = Net(lambda self, x: self.conv(x).relu_() if self.late else self.conv(x))
    net.conv, net.late = nn.Conv2d(3, 4, 1), False
    with Taps(net, "conv") as taps:
        net(images())
        taps.outputs()
        net.late = True
        net(images())
        with pytest.raises(RuntimeError, match=r"'conv' was changed in place"):
            taps.outputs()
        net(images())
        assert equal(taps.outputs(), {"conv": net.conv(images())})


def test_a_change_in_place_by_another_name_is_noticed_in_the_first_pass():
    def forward(self, x):
        x = self.conv(x)
        kept = self.drop(x)  # in eval mode, x itself
        x += 1
        return x + kept

    net = Net(forward, conv=nn.Conv2d(3, 4, 1), drop=nn.Dropout()).eval()
    with Taps(net, "drop") as taps:
        for _ in range(2):
            net(images())
            with pytest.raises(RuntimeError, match="'drop' was changed in place"):
                taps.outputs()


def test_an_edit_is_recorded_and_handed_on():
    net, seen = conv_net(), []

    def edit(name, output):
        seen.append(name)
        return output * 0

    with Taps(net, "conv3", edit=edit) as taps:
        for _ in range(2):
            assert torch.equal(net(images()), net.fc.bias.expand(2, 3))
            assert not taps.outputs()["conv3"].any()
    assert seen == ["conv3"] * 2


# -------------------------------------------------------------------------------------- names


def test_names_patterns_and_auto():
    net = conv_net()
    assert resolve_taps(net, "conv2") == ("conv2",)
    assert resolve_taps(net, ["fc", "conv?"]) == ("fc", "conv1", "conv2", "conv3")
    assert resolve_taps(net, "auto") == Taps(net).names


def test_unknown_names_list_near_ones():
    with pytest.raises(UserError, match=r"unknown tap 'convv1'.*conv1"):
        Taps(conv_net(), ["conv2", "convv1"])
    with pytest.raises(UserError, match="no taps"):
        Taps(conv_net(), [])


# -------------------------------------------------------------------- what cannot be recorded


def test_outputs_before_a_forward_pass_are_an_error():
    with (
        Taps(conv_net(), "fc") as taps,
        pytest.raises(RuntimeError, match="no forward pass was recorded"),
    ):
        taps.outputs()


def test_what_is_called_outside_a_forward_pass_of_the_network_is_not_recorded():
    net = conv_net()
    with Taps(net, "conv1") as taps:
        net.conv1(images())
        with pytest.raises(RuntimeError, match="no forward pass was recorded"):
            taps.outputs()
        net(images())
        net.conv1(images(seed=1))
        assert equal(taps.outputs(), reference.hooked(conv_net(), ["conv1"], images())[1])


def test_a_module_called_twice_is_an_error():
    net = conv_net()
    with Taps(net, ["conv1", "relu"]), pytest.raises(UserError, match="'relu' is called twice"):
        net(images())
    assert hooks_of(net) == 0


def test_a_module_not_called_is_an_error_also_after_a_pass_that_called_it():
    net = Net(
        lambda self, x: self.c(self.b(self.a(x))) if self.use else self.a(x),
        a=nn.ReLU(),
        b=nn.Tanh(),
        c=nn.Sigmoid(),
    )
    net.use = True
    with Taps(net, ["a", "b", "c"]) as taps:
        net(images())
        taps.outputs()
        net.use = False
        net(images())
        with pytest.raises(RuntimeError, match="not called in the last forward pass: b, c;"):
            taps.outputs()


@pytest.mark.parametrize(
    ("output", "message"),
    [((1, 2), "returns a tuple, not a tensor"), (torch.zeros(3), r"shape \(3,\)")],
    ids=["tuple", "vector"],
)
def test_an_output_that_is_no_feature_map_is_an_error(output, message):
    net = nn.Sequential(Net(lambda self, x: output))
    with Taps(net, "0"), pytest.raises(UserError, match=message):
        net(images())


# -------------------------------------------------------------------------- borrow and return


def test_hooks_are_gone_after_the_context_and_after_an_exception():
    net = conv_net()
    taps = Taps(net, TAPS)
    assert hooks_of(net) == 0
    with taps:
        assert hooks_of(net) == len(TAPS) + 2
        with pytest.raises(RuntimeError, match="recording already"):
            taps.__enter__()
    assert hooks_of(net) == 0
    with pytest.raises(ZeroDivisionError), taps:
        raise ZeroDivisionError
    assert hooks_of(net) == 0
    with pytest.raises(RuntimeError, match="channels"), taps:
        net(torch.zeros(1, 2, 8, 8))
    assert hooks_of(net) == 0


def test_taps_can_be_entered_again_and_after_a_pass_that_failed():
    net = conv_net()
    taps = Taps(net, TAPS)
    with taps, pytest.raises(RuntimeError):
        net(torch.zeros(2, 3, 1, 1))  # too small for conv3
    for _ in range(2):
        with taps:
            net(images())
            assert equal(taps.outputs(), reference.hooked(conv_net(), TAPS, images())[1])


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_pass_that_failed_is_over(error):
    """What is called on its own afterwards is not called a second time in it."""

    def fail(self, x):
        raise error

    net = Net(lambda self, x: self.b(self.a(x)), a=nn.Conv2d(3, 4, 1), b=Net(fail))
    taps = Taps(net, "a")

    def use():
        net.a(images())
        try:
            net(images())
        except ZeroDivisionError:
            net.a(images())
            raise

    for _ in range(2):
        with pytest.raises(error), taps:
            use()
        assert equal(taps.outputs(), {"a": net.a(images())})


def test_outputs_stay_after_the_context_until_they_are_cleared():
    net = conv_net()
    with Taps(net, "fc") as taps:
        logits = net(images())
    net(images(seed=5))
    assert torch.equal(taps.outputs()["fc"], logits)
    taps.clear()
    with pytest.raises(RuntimeError, match="no forward pass"):
        taps.outputs()


def test_a_copy_made_in_the_context_records_nothing():
    net = conv_net()
    with Taps(net, TAPS) as taps:
        net(images())
        average = copy.deepcopy(net)
        average(images(seed=1))
        assert equal(taps.outputs(), reference.hooked(conv_net(), TAPS, images())[1])


# ------------------------------------------------------------------------------------- record


def test_record_stops_at_the_last_tap():
    net = conv_net()
    calls = []
    for name, module in net.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: calls.append(name))
    with Taps(net, ["conv2", "conv1"]) as taps:
        for _ in range(3):
            calls.clear()
            found = taps.record(images())
            assert calls == ["conv1", "norm1", "relu", "pool", "conv2"]
        net(images())  # a plain call runs to the end
        assert calls[-1] == "fc"
    assert equal(found, reference.hooked(conv_net(), ["conv2", "conv1"], images())[1])


# ------------------------------------------------------------------ activation checkpointing


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)
        )
        self.fc = nn.Linear(4, 2)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        if self.reentrant is None:
            x = self.block(x)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.fc(x.mean(dim=(2, 3)))


def run_checkpointed(reentrant, names):
    torch.manual_seed(0)
    net = Checkpointed(reentrant).eval()
    with Taps(net, names) as taps:
        for _ in range(2):
            net.zero_grad()
            loss = net(images()).sum()
            outputs = taps.outputs()
            loss = loss + sum(output.square().sum() for output in outputs.values())
            loss.backward()
    return outputs, [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("names", [["block"], ["stem", "block.1", "block.3"]], ids=["end", "in"])
def test_checkpointing_changes_neither_values_nor_gradients(names):
    plain, plain_gradients = run_checkpointed(None, names)
    found, gradients = run_checkpointed(False, names)
    assert equal(found, plain)
    for expected, gradient in zip(plain_gradients, gradients, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-6)


def test_reentrant_checkpointing_around_a_tap_is_a_clear_error():
    with pytest.raises(UserError, match=r"'block.1' runs without gradients.*use_reentrant=False"):
        run_checkpointed(True, ["block.1"])
    # A tap outside of it is fine.
    assert equal(run_checkpointed(True, ["stem"])[0], run_checkpointed(None, ["stem"])[0])


def test_producer_is_the_last_child_of_plain_sequentials():
    inner = nn.Sequential(nn.ReLU(), nn.Tanh())
    assert output_module(nn.Sequential(nn.ReLU(), inner)) is inner[1]
    empty, net = nn.Sequential(), ConvNet()
    assert output_module(empty) is empty
    assert output_module(net) is net


# ---------------------------------------------------------------------------------- the import


def test_the_compiler_is_not_loaded_unless_something_is_compiled():
    code = """
import sys, torch
from delta_transfer import Taps
net = torch.nn.Sequential(torch.nn.Linear(2, 2))
with Taps(net, "0") as taps:
    net(torch.ones(1, 2))
    taps.outputs()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hooks_are_not_traced_although_the_compiler_is_loaded_after_them():
    code = """
import sys, torch
from delta_transfer import Taps
traced = []
def edit(name, output):
    traced.append(torch.compiler.is_compiling())
    return output
net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
with Taps(net, "0", edit=edit) as taps:
    assert "torch._dynamo" not in sys.modules
    compiled = torch.compile(net, backend="eager")
    for value in (1.0, 2.0):
        x = torch.full((1, 2), value)
        compiled(x)
        assert torch.equal(taps.outputs()["0"], net[0].forward(x))
assert traced == [False, False], traced
"""
    subprocess.run([sys.executable, "-c", code], check=True)

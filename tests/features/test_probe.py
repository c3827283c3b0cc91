import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch import nn

from delta_transfer.errors import DataError, ModelError, UserError
from delta_transfer.features.probe import (
    STRENGTHS,
    LinearProbe,
    collect_features,
    find_head,
    fit_probe,
    replace_head,
)
from tests import reference
from tests.networks import conv_net, hooks_of


def clusters(per_class=10, classes=3, features=8, spread=1.0, seed=0):
    """Features whose columns differ in scale and mean, and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    noise = spread * torch.randn(len(labels), features, generator=generator)
    scale = torch.logspace(-2, 2, features)
    return (centres[labels] + noise) * scale + 3 * scale, labels


def loader(x, y, size=4):
    return list(zip(x.split(size), y.split(size), strict=True))


# --------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("strength", [1.0, 3e-2, 1e-3])
@pytest.mark.parametrize(
    ("per_class", "features"), [(10, 8), (4, 40)], ids=["many samples", "many features"]
)
def test_one_strength_is_scikit_learns_logistic_regression(strength, per_class, features):
    x, y = clusters(per_class=per_class, features=features)
    probe = fit_probe(x, y, num_outputs=3, strengths=[strength])
    scaler = StandardScaler().fit(x.double().numpy())
    sklearn = LogisticRegression(C=1 / (2 * strength * len(x)), tol=1e-8, max_iter=10_000)
    sklearn.fit(scaler.transform(x.double().numpy()), y.numpy())
    new, _ = clusters(per_class=5, features=features, seed=7)
    expected = sklearn.decision_function(scaler.transform(new.double().numpy()))
    found = probe(new)
    # Logits that differ by a constant are the same; scikit-learn's sum to zero.
    found = (found - found.mean(dim=1, keepdim=True)).numpy()
    assert np.abs(found - expected).max() < 1e-3 * max(1, np.abs(expected).max())
    assert probe.regularization == strength
    assert (probe.weight.shape, probe.bias.shape) == ((3, features), (3,))
    assert probe.weight.dtype == torch.float32


def test_the_strength_is_cross_validated_and_deterministic():
    clear, labels = clusters(spread=0.1)
    noise = torch.randn(150, 20, generator=torch.Generator().manual_seed(3))
    weak = fit_probe(clear, labels, num_outputs=3)
    strong = fit_probe(noise, torch.arange(150) % 3, num_outputs=3)
    # Noise is regularised so strongly that the probe fits nothing.
    assert weak.regularization < 0.1 < 1 <= strong.regularization
    assert strong(noise).softmax(dim=1).amax().item() < 0.5
    assert torch.equal(weak(clear).argmax(dim=1), labels)
    again = fit_probe(clear, labels, num_outputs=3)
    assert torch.equal(again.weight, weak.weight)
    assert torch.equal(again.bias, weak.bias)
    assert max(STRENGTHS) / min(STRENGTHS) >= 1e7


def test_cross_validation_takes_the_lowest_held_out_loss():
    x, y = clusters(per_class=5, spread=2.0)
    candidates = (1.0, 1e-1, 1e-2)
    found = fit_probe(x, y, num_outputs=3, strengths=candidates, folds=5)
    losses = []
    for strength in candidates:
        total = 0.0
        standard = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
            model = LogisticRegression(C=1 / (2 * strength * len(train)), tol=1e-8, max_iter=1000)
            model.fit(standard[train].numpy(), y[train].numpy())
            logits = torch.from_numpy(model.decision_function(standard[test].numpy()))
            total += F.cross_entropy(logits, y[test], reduction="sum").item()
        losses.append(total)
    assert found.regularization == candidates[int(np.argmin(losses))]


@pytest.mark.parametrize(
    ("small", "large", "standardize"),
    [
        (2.0, 0.0, True),  # what tells the classes apart varies little, and noise a lot
        (0.0, 2.0, False),  # many nearly constant features are noise
    ],
)
def test_the_scaling_is_cross_validated(small, large, standardize):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randn(60, 30, generator=generator)
    x[:, :27] = (x[:, :27] + small * y[:, None]) * 0.01
    x[:, 27:] = x[:, 27:] + large * y[:, None]
    found = fit_probe(x, y, num_outputs=2)
    same, other = (fit_probe(x, y, num_outputs=2, standardize=one) for one in (True, False))
    if not standardize:
        same, other = other, same
    assert torch.equal(found.weight, same.weight)
    assert not torch.equal(found.weight, other.weight)
    assert found.regularization == same.regularization


def test_the_order_of_the_candidates_does_not_matter():
    x, y = clusters()
    falling = fit_probe(x, y, num_outputs=3, strengths=[1.0, 1e-2, 1e-4])
    rising = fit_probe(x, y, num_outputs=3, strengths=[1e-4, 1e-2, 1.0])
    assert rising.regularization == falling.regularization
    assert torch.equal(rising.weight, falling.weight)


def test_views_of_a_sample_count_as_samples_and_stay_in_one_fold():
    x, y = clusters(per_class=6)
    mirrored = x + 0.1 * x.std(dim=0)
    views = torch.stack([x, mirrored], dim=1)
    one = fit_probe(views, y, num_outputs=3, strengths=[1e-2])
    stacked = fit_probe(torch.cat([x, mirrored]), y.repeat(2), num_outputs=3, strengths=[1e-2])
    assert torch.allclose(one(x), stacked(x), atol=1e-2)
    # Copies in another fold make noise look learnable.
    noise = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    honest = fit_probe(torch.stack([noise, noise], dim=1), labels, num_outputs=3)
    fooled = fit_probe(torch.cat([noise, noise]), labels.repeat(2), num_outputs=3)
    assert fooled.regularization < 0.1 < 1 < honest.regularization


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 5, 9), (2, 2, 3)])
def test_tiny_classes(counts):
    x, y = clusters(per_class=9, spread=0.1)
    keep = torch.cat([torch.nonzero(y == i)[:count, 0] for i, count in enumerate(counts)])
    probe = fit_probe(x[keep], y[keep], num_outputs=3)
    assert probe.weight.isfinite().all()
    assert probe.bias.isfinite().all()
    assert torch.equal(probe(x[keep]).argmax(dim=1), y[keep]) or min(counts) == 1


def test_a_class_without_samples_and_constant_features():
    x, y = clusters(classes=2)
    x = torch.cat([x, torch.full((len(x), 2), 0.1)], dim=1)
    probe = fit_probe(x, y, num_outputs=4, strengths=[1e-2])
    assert probe(x).shape == (20, 4)
    assert torch.equal(probe(x).argmax(dim=1), y)
    assert not probe.weight[:, -2:].any()


def test_regression():
    x, _ = clusters(per_class=20, spread=1.0)
    truth = torch.linspace(-1, 1, 8) / x.std(dim=0)
    targets = torch.stack([x @ truth + 5, -(x @ truth)], dim=1)
    probe = fit_probe(x, targets, num_outputs=2, loss=F.mse_loss)
    assert F.mse_loss(probe(x), targets).item() < 1e-3
    assert probe.regularization == min(STRENGTHS)


def test_fitting_works_without_gradients_and_draws_no_random_numbers():
    x, y = clusters()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.no_grad():
        probe = fit_probe(x, y, num_outputs=3, strengths=[1.0, 0.1])
    assert not probe.weight.requires_grad
    assert torch.equal(torch.rand(3), expected)


def test_a_probe_computes_in_the_dtype_of_its_features():
    probe = LinearProbe(torch.ones(2, 3), torch.zeros(2), 1.0)
    assert probe(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float64
    assert probe(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]


# -------------------------------------------------------------------------------------- head

HEADS = {  # a name alone is timm's
    "resnet50": "fc",
    "convnext_tiny": "head.fc",
    "efficientnet_b0": "classifier",
    "mobilenetv3_large_100": "classifier",
    "vit_small_patch16_224": "head",
    "swin_tiny_patch4_window7_224": "head.fc",
    "inception_v3": "fc",
    "densenet121": "classifier",
    "regnety_016": "head.fc",
    "torchvision/resnet50": "fc",
    "torchvision/vgg16": "classifier.6",
    "torchvision/densenet121": "classifier",
    "torchvision/inception_v3": "fc",
    "torchvision/vit_b_16": "heads.head",
}


@pytest.mark.parametrize("name", HEADS)
def test_find_head(name):
    library, _, model = name.rpartition("/")
    with torch.device("meta"):  # no weights: names are all that is asked for
        if library:
            options = {"init_weights": False} if model == "inception_v3" else {}
            net = torchvision.models.get_model(model, weights=None, **options)
        else:
            try:
                net = timm.create_model(model, pretrained=False)
            except NotImplementedError as error:  # an operator that torch 2.10 has not yet there
                pytest.skip(str(error))
    assert find_head(net) == HEADS[name]
    assert isinstance(net.get_submodule(HEADS[name]), nn.Linear)


def test_find_head_by_name_and_its_errors():
    net = conv_net()
    assert find_head(net) == find_head(net, "fc") == "fc"
    with pytest.raises(UserError, match="unknown head 'fcc'"):
        find_head(net, "fcc")
    with pytest.raises(UserError, match="no head found in Sequential"):
        find_head(nn.Sequential(nn.ReLU()))


def test_a_timm_network_without_classes_has_an_identity_for_a_head():
    net = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    assert find_head(net) == "fc"
    x = torch.randn(2, 3, 32, 32)
    features, _ = collect_features(net, [(x, torch.zeros(2))])
    assert torch.equal(features[:, 0], net(x).detach())


def test_replaced_head_and_its_end_on_an_exception():
    net = conv_net()
    x = torch.randn(2, 3, 8, 8)
    with replace_head(net, "fc", lambda f: f * 2):
        expected = reference.with_head(net, "fc", nn.Identity())(x) * 2
        assert torch.equal(net(x), expected)
    assert hooks_of(net) == 0
    with pytest.raises(ZeroDivisionError), replace_head(net, "fc", lambda f: f / 0):
        raise ZeroDivisionError
    assert hooks_of(net) == 0
    assert net(x).shape == (2, 3)


# ---------------------------------------------------------------------------------- features


def test_collect_features_is_what_the_head_sees_and_leaves_the_network_alone():
    net = conv_net().train()
    net.norm1.eval()
    net.conv1.requires_grad_(False)
    before = copy.deepcopy(net)
    x, y = torch.randn(7, 3, 8, 8), torch.arange(7)
    features, targets = collect_features(net, loader(x, y), horizontal_flip=True)
    bare = reference.with_head(net, "fc", nn.Identity())
    assert features.shape == (7, 2, 6)
    assert torch.allclose(features[:, 0], bare(x), atol=1e-6)
    assert torch.allclose(features[:, 1], bare(x.flip(-1)), atol=1e-6)
    assert torch.equal(targets, y)
    assert not features.requires_grad
    assert hooks_of(net) == 0
    for now, then in zip(net.modules(), before.modules(), strict=True):
        assert now.training == then.training
    for now, then in zip(net.parameters(), before.parameters(), strict=True):
        assert (now.requires_grad, now.grad) == (then.requires_grad, None)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in net.state_dict().items())


def test_features_that_are_not_rows_and_empty_loaders_are_errors():
    net = conv_net()
    batch = [(torch.randn(2, 3, 8, 8), torch.zeros(2))]
    with pytest.raises(ModelError, match=r"'conv2'.*\(2, 4, 4, 4\)"):
        collect_features(net, batch, head="conv2")
    with pytest.raises(DataError, match=r"^the loader is empty: pass training data"):
        collect_features(net, [])
    assert hooks_of(net) == 0

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from delta_transfer import BSS, Regularizer, Step
from delta_transfer.methods.bss import spectral_shrinkage
from tests.methods.draws import draw
from tests.networks import conv_net


def rows(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, dtype=dtype, generator=generator)


def step(features: Tensor) -> Step:
    return Step(target=nn.Identity(), source=None, head_inputs={"fc": features})


@pytest.mark.parametrize("count", [1, 3])
def test_bss_is_the_formula(count):
    penalty = BSS("fc", strength=0.3, count=count)
    values = np.linalg.svd(rows().numpy(), compute_uv=False)
    assert penalty(step(rows())).item() == pytest.approx(0.3 * (values[-count:] ** 2).sum())


def test_features_that_are_no_numbers_give_none_and_no_traceback():
    assert BSS("fc")(step(torch.full((4, 6), torch.nan))).isnan()


def test_the_defaults_are_the_papers():
    assert (BSS("fc").strength, BSS("fc").count) == (0.001, 1)


def test_gradients_also_of_a_batch_of_equal_rows():
    penalty = BSS("fc", strength=0.3)
    assert torch.autograd.gradcheck(lambda r: penalty(step(r)), (rows().requires_grad_(),))
    equal = torch.ones(4, 6, requires_grad=True)
    penalty(step(equal)).backward()
    assert equal.grad.isfinite().all()


def test_it_is_in_single_precision_under_autocast_and_computes_where_it_is_put():
    penalty, features = BSS("fc"), rows(dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = penalty(step(features))
    assert torch.equal(found, penalty(step(features.float())))
    assert penalty.to("meta")(step(rows().to("meta"))).device.type == "meta"


def test_copies_and_pickles_are_the_same_penalty():
    penalty = BSS("fc", strength=0.3, count=2)
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert other(step(rows())).item() == penalty(step(rows())).item()
    assert not penalty.state_dict()


def test_in_a_training_loop_it_sees_what_the_head_sees_and_needs_no_source():
    net, inputs = conv_net(), torch.randn(5, 3, 8, 8)
    with Regularizer(net, None, [BSS("fc", strength=0.3)]) as regularizer:
        net(inputs)
        term = regularizer(inputs).total
        body = nn.Sequential(net.conv1, net.norm1, net.relu, net.pool)
        first = body(inputs)
        rest = net.conv3((net.norm2(net.conv2(first)) + first).relu()).mean(dim=(2, 3))
        values = np.linalg.svd(rest.detach().numpy(), compute_uv=False)
        assert term.item() == pytest.approx(0.3 * values[-1] ** 2, rel=1e-4)
        term.backward()
    assert net.conv1.weight.grad.abs().max() > 0
    assert net.fc.weight.grad is None


def test_errors():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        BSS("fc", count=0)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5)])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_smallest_singular_values_are_those_of_the_gram_matrix(shape, count):
    rows = draw(*shape)
    small = rows.numpy() if shape[0] < shape[1] else rows.numpy().T
    squares = np.linalg.eigvalsh(small @ small.T)  # ascending
    found = spectral_shrinkage(rows, count=count)
    assert found.item() == pytest.approx(squares[:count].sum(), rel=1e-9)


def test_the_gradient_of_singular_values():
    rows = draw(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: spectral_shrinkage(r, count=2), (rows,))


@pytest.mark.parametrize("rows", [torch.zeros(3, 5), torch.ones(3, 5), torch.eye(4)])
def test_singular_values_that_are_zero_or_equal_have_finite_gradients(rows):
    rows = rows.clone().requires_grad_()
    (slope,) = torch.autograd.grad(spectral_shrinkage(rows, count=2), rows)
    assert slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_singular_values_of_half_precision_are_in_single_precision(dtype):
    one = draw(3, 4, seed=1).to(dtype)
    found = spectral_shrinkage(one, count=2)
    assert found.dtype == torch.float32
    assert torch.equal(found, spectral_shrinkage(one.float(), count=2))

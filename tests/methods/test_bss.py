import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from delta_transfer import BSS, Regularizer, Step
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

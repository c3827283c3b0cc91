import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from delta_transfer.methods.gtot import masked_plan, transport_distance
from tests.rows import some_rows

SIZES = (3, 1, 6, 2, 5)


def features(inputs, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(inputs.x), width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def allowed_pairs(graph, order):
    """Rows at most so many edges apart, by walking them."""
    size = len(graph.x)
    near = [{i} for i in range(size)]
    for _ in range(order):
        near = [found | {b for a, b in graph.edge_index.T.tolist() if a in found} for found in near]
    return near


def costs(now, then):
    cosine = torch.nn.functional.cosine_similarity(now.unsqueeze(1), then.unsqueeze(0), dim=2)
    return (1 - cosine).numpy()


def cheapest(cost, near):
    """The linear programme: forbidden pairs may carry nothing."""
    size = len(cost)
    equalities = np.zeros((2 * size, size, size))
    for i in range(size):
        equalities[i, i, :] = 1
        equalities[size + i, :, i] = 1
    bounds = [(0, None if j in near[i] else 0) for i in range(size) for j in range(size)]
    found = linprog(
        cost.ravel(),
        A_eq=equalities.reshape(2 * size, -1),
        b_eq=np.full(2 * size, 1 / size),
        bounds=bounds,
    )
    assert found.success
    return found.fun


def by_scaling(cost, near, regularization, rounds=1000):
    """Sinkhorn as the textbook has it: rows and columns scaled in turn until nothing changes."""
    size = len(cost)
    kernel = np.array(
        [
            [math.exp(-cost[i, j] / regularization) if j in near[i] else 0.0 for j in range(size)]
            for i in range(size)
        ]
    )
    for _ in range(rounds):
        kernel *= (1 / size / kernel.sum(axis=1))[:, None]
        kernel *= (1 / size / kernel.sum(axis=0))[None, :]
    return float((kernel * cost).sum())


def expected(inputs, now, then, order, price):
    found = []
    for i in range(len(inputs)):
        mine = inputs.groups == i
        near = allowed_pairs(inputs[i : i + 1], order)
        found.append(price(costs(now[mine], then[mine]), near))
    return 0.5 * sum(found) / len(found)


@pytest.mark.parametrize("order", [0, 1, 2, 9])
def test_the_distance_is_that_of_plain_sinkhorn_for_each_graph(order):
    inputs = some_rows(SIZES)
    now, then = features(inputs)
    found = transport_distance(
        now,
        then,
        edges=inputs.edge_index,
        groups=inputs.groups,
        order=order,
        regularization=0.5,
        iterations=1000,
    )
    reference = expected(inputs, now, then, order, lambda c, near: by_scaling(c, near, 0.5))
    assert found.item() == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_with_little_entropy_it_is_the_linear_programme_among_neighbours(order):
    inputs = some_rows(SIZES)
    now, then = features(inputs)
    found = transport_distance(
        now,
        then,
        edges=inputs.edge_index,
        groups=inputs.groups,
        order=order,
        regularization=0.002,
        iterations=4000,
    )
    assert found.item() == pytest.approx(expected(inputs, now, then, order, cheapest), abs=1e-3)
    anywhere = expected(inputs, now, then, 9, cheapest)
    assert order == 2 or found.item() > anywhere + 0.01  # the mask is not idle


def test_the_default_has_as_good_as_converged():
    inputs = some_rows(SIZES)
    now, then = features(inputs)
    given = {"edges": inputs.edge_index, "groups": inputs.groups}
    found = transport_distance(now, then, **given)
    assert found.item() == pytest.approx(
        transport_distance(now, then, **given, iterations=5000).item(), rel=1e-3
    )


def test_a_plan_has_the_mass_that_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.tensor([[0, 1, 2, 0, 1, 1, 2, 3], [0, 1, 2, 1, 0, 2, 1, 3]])
    cost = torch.rand(8, generator=generator, dtype=torch.float64)
    mass = torch.tensor([0.25, 0.25, 0.25, 2.0], dtype=torch.float64)
    plan = masked_plan(cost, pairs, mass, regularization=0.1, iterations=2000)
    for side in pairs:
        sums = torch.zeros_like(mass).index_add(0, side, plan)
        assert torch.allclose(sums, mass, rtol=1e-6)
    assert plan.min() >= 0


def test_neither_the_order_of_rows_nor_of_graphs_matters():
    inputs = some_rows(SIZES)
    now, then = features(inputs)
    plain = transport_distance(now, then, edges=inputs.edge_index, groups=inputs.groups)
    order = torch.randperm(len(now), generator=torch.Generator().manual_seed(1))
    back = torch.argsort(order)
    numbers = torch.tensor([7, 2, 0, 9, 4])  # with gaps
    mixed = transport_distance(
        now[order],
        then[order],
        edges=back[inputs.edge_index],
        groups=numbers[inputs.groups][order],
    )
    assert mixed.item() == pytest.approx(plain.item(), rel=1e-9)


def test_gradients_are_those_of_the_distance_and_finite_at_the_start():
    inputs = some_rows((3, 1, 4))
    now, then = features(inputs)

    def distance(rows):
        return transport_distance(
            rows, then, edges=inputs.edge_index, groups=inputs.groups, iterations=20
        )

    assert torch.autograd.gradcheck(distance, (now.requires_grad_(),))
    for rows in (then.clone(), torch.zeros_like(then)):  # equal features, and dead ones
        (slope,) = torch.autograd.grad(distance(rows.requires_grad_()), rows)
        assert slope.isfinite().all()


def test_half_precision_is_widened():
    inputs = some_rows(SIZES)
    now, then = (rows.to(torch.bfloat16) for rows in features(inputs))
    given = {"edges": inputs.edge_index, "groups": inputs.groups}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = transport_distance(now, then, **given)
    assert found.dtype == torch.float32
    assert torch.equal(found, transport_distance(now.float(), then.float(), **given))

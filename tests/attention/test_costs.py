"""Costs against sums over steps and against the bytes that a cache reads; ALISA's phases."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.cache.phases import Machine, Phases, best_phases, simulate
from sparseworks.attention.costs import (
    Cost,
    Sizes,
    cheapest,
    crossover,
    dense_cost,
    pass_at,
    sparse_cost,
    step_bytes,
)
from sparseworks.core.budget import Count
from sparseworks.core.errors import BudgetError

SMALL = Sizes(parameters=6e8, width=28 * 2048, kv_width=28 * 1024)
LARGE = Sizes(parameters=3.2e10, width=64 * 5120, kv_width=64 * 1024)


def test_dense_costs_are_the_sums_over_steps():
    prompt, output, trials = 1000, 500, 3
    found = dense_cost(SMALL, prompt, output, trials)
    flops = trials * sum(2 * SMALL.parameters + 4 * (prompt + t) * SMALL.width for t in range(output))
    shared = sum(2 * prompt * SMALL.kv_width * 2 for _ in range(output))
    own = trials * sum(2 * t * SMALL.kv_width * 2 for t in range(output))
    assert found.flops == pytest.approx(flops, rel=1e-3) and found.bytes == pytest.approx(shared + own, rel=1e-3)
    assert found.equivalent(2.0) == found.flops + 2 * found.bytes


def test_sparse_costs_are_the_sums_over_steps_and_win_beyond_the_crossover():
    prompt, output, budget, block = 8000, 4000, 512, 16
    found = sparse_cost(SMALL, prompt, output, budget=budget, block=block)
    search = sum((prompt + t) / block for t in range(output))
    flops = output * (2 * SMALL.parameters + 4 * budget * SMALL.width) + 2 * search * SMALL.width
    read = output * 2 * budget * SMALL.kv_width * 2 + search * SMALL.kv_width * 2
    assert found.flops == pytest.approx(flops, rel=1e-3) and found.bytes == pytest.approx(read, rel=1e-3)
    edge = crossover(budget, block)
    for context, wins in ((edge * 0.98, False), (edge * 1.02, True)):
        sparse = step_bytes(10**9, SMALL, budget=budget, index=round(context / block * SMALL.kv_width * 2))
        assert (sparse < step_bytes(round(context), SMALL)) == wins
    assert sparse_cost(SMALL, 100, 100, budget=512) == dense_cost(SMALL, 100, 100)
    with pytest.raises(BudgetError, match="Budget and block"):
        sparse_cost(SMALL, 100, 100, budget=0)


def test_memory_traffic_moves_the_optimum_to_larger_models():
    """A small model that has to try often beats a large one on arithmetic alone; its trials each read their own cache."""
    wanted = 0.6
    options = [
        (pass_at(8, 12, 100), dense_cost(SMALL, 2000, 8000, 8)),
        (pass_at(1, 65, 100), dense_cost(LARGE, 2000, 8000, 1)),
    ]
    assert all(accuracy >= wanted for accuracy, _ in options)
    assert cheapest(options, wanted, intensity=0.0) == 0 and cheapest(options, wanted) == 1
    sparse = [
        (a, sparse_cost(m, 2000, n, trials, budget=1024))
        for (a, _), m, n, trials in zip(options, (SMALL, LARGE), (8000, 8000), (8, 1), strict=True)
    ]
    assert min(c.equivalent() for _, c in sparse) < 0.5 * min(c.equivalent() for _, c in options)
    with pytest.raises(BudgetError, match="No option"):
        cheapest([(0.1, Cost(1.0, 1.0))], wanted)


def test_pass_at_counts_draws():
    assert pass_at(1, 3, 10) == pytest.approx(0.3) and pass_at(8, 3, 10) == 1 and pass_at(5, 0, 10) == 0
    assert pass_at(2, 3, 10) == pytest.approx(1 - 7 / 10 * 6 / 9)
    with pytest.raises(BudgetError):
        pass_at(11, 3, 10)


@torch.no_grad()
def test_the_bytes_that_caches_read_are_those_of_the_formulas():
    model = sw.load("sparseworks/tiny-lm").eval()
    sizes = Sizes(parameters=0, width=6 * 256, kv_width=6 * 128, element=4)
    ids = torch.randint(5, 4000, (1, 80), generator=torch.Generator().manual_seed(0))
    for name, options in (("snapkv", {"density": 1.0}), ("double_sparsity", {"budget": Count(16)})):
        with sw.attention(model, sw.method(name, **options)) as run:
            cache = run.cache()
            model(ids[:, :60], cache=cache)
            total = index = 0
            for i in range(60, 80):
                model(ids[:, i : i + 1], cache=cache)
                total += cache.read
                index += sum(x.nbytes for layer in cache.held for x in getattr(layer, "indices", []))
        if name == "snapkv":
            assert total == sum(step_bytes(t, sizes) for t in range(61, 81))
            assert total == pytest.approx(dense_cost(sizes, 60, 20).bytes, rel=0.02)
        else:
            assert total == 20 * step_bytes(1000, sizes, budget=16) + index


@pytest.mark.parametrize("bandwidth", [1e6, 1e8, 1e10])
@pytest.mark.parametrize("recompute", [1e-7, 1e-5, 1e-3])
def test_three_phases_are_never_slower_than_offloading_alone(bandwidth, recompute):
    machine = Machine(token_bytes=1000, device_bytes=200_000, bandwidth=bandwidth, recompute=recompute, attend=1e-8)
    alone, plan = simulate(machine, Phases(), 100, 400), best_phases(machine, 100, 400)
    found = simulate(machine, plan, 100, 400)
    assert found.seconds <= alone.seconds and found.moved <= alone.moved
    assert alone.phases == (100, 300, 0) and sum(found.phases) == 400


def test_a_slow_link_is_worth_recomputing_for_and_what_moves_can_be_counted():
    machine = Machine(token_bytes=10, device_bytes=1000, bandwidth=100.0, recompute=0.1)
    spent = simulate(machine, Phases(150, 0.5), 99, 101, keep=0.2)
    assert spent.phases == (1, 49, 51)
    moved = sum(10 * (0.1 * (c - 100) + 1) for c in range(101, 150)) + sum(
        10 * (0.05 * (c - 100) + 0.5) for c in range(150, 201)
    )
    assert spent.moved == pytest.approx(moved, rel=0.02)
    plan = best_phases(machine, 99, 101)
    assert (
        plan.third is not None
        and simulate(machine, plan, 99, 101).seconds < 0.8 * simulate(machine, Phases(), 99, 101).seconds
    )
    with pytest.raises(BudgetError):
        Phases(10, 1.5)

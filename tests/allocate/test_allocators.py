from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.allocate import DLP, ERK, OWL, Balanced, ERKPlus, Global, Pyramidal, SensitivityDP, UniformPlus
from sparseworks.allocate.apportion import fit, to_integers
from sparseworks.allocate.knapsack import cheapest
from sparseworks.allocate.scored import affine
from sparseworks.allocate.shape import dims
from sparseworks.core.allocator import ALLOCATORS, Evidence, Uniform
from sparseworks.core.budget import Count, Density
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.site import Site
from sparseworks.core.stats import InputMoments, Stats
from sparseworks.scores import Magnitude

NOTHING = Evidence(weight=lambda name: torch.zeros(0, 0))
OURS = [UniformPlus(), ERK(), ERKPlus(), Balanced(), Pyramidal(), Global(), OWL(), DLP(), SensitivityDP(), Uniform()]


def site(name: str, rows: int, cols: int, kernel: tuple[int, ...] = ()) -> Site:
    return Site(name, "conv2d" if kernel else "linear", f"{name}.weight", (rows, cols), kernel=kernel)


SITES = [site("conv", 16, 27, (3, 3)), site("a", 64, 48), site("b", 128, 64), site("head", 10, 128)]


def evidence(sites, *, blocks: dict[str, int] | None = None, seed: int = 0) -> Evidence:
    g = torch.Generator().manual_seed(seed)
    weights = {s.name: torch.randn(s.shape, generator=g) * (i + 1) for i, s in enumerate(sites)}
    stats = {}
    for s in sites:
        stats[s.name] = Stats.collecting({InputMoments}, s.shape, site=s.name)
        stats[s.name].feed("input", torch.randn(20, s.shape[1], generator=g).exp())
    slope = {s.name: i + 1 for i, s in enumerate(sites)}
    return Evidence(
        weight=weights.__getitem__,
        stats=stats,
        score=Magnitude(),
        block=blocks if blocks is not None else {s.name: i for i, s in enumerate(sites)},
        error=lambda name, d: slope[name] * (1 - d) ** 2,
    )


shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40)
@given(shapes=shapes, density=st.floats(0, 1), blocks=st.lists(st.integers(-1, 2), min_size=7, max_size=7))
@pytest.mark.parametrize("allocator", OURS, ids=lambda a: a.registered_name)
def test_counts_sum_exactly_and_fit(allocator, shapes, density, blocks):
    sites = [site(str(i), r, c) for i, (r, c) in enumerate(shapes)]
    total = round(density * sum(s.size for s in sites))
    facts = evidence(sites, blocks={s.name: b for s, b in zip(sites, blocks, strict=False)})
    try:
        counts = allocator(sites, Count(total), evidence=facts)
    except BudgetError as error:
        assert isinstance(allocator, UniformPlus | ERKPlus | SensitivityDP), error
        assert str(total) in str(error)
        return
    assert sum(counts.values()) == total
    assert all(0 <= counts[s.name] <= s.size for s in sites)
    assert all(type(k) is int for k in counts.values())


def test_all_are_registered():
    assert {a.registered_name for a in OURS} <= set(ALLOCATORS.names())


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.7, 0.95])
def test_erk_equals_the_clipping_loop(density):
    """The loop of the published code: densities above 1 become 1 and leave the solve for the scale."""
    raw = {s.name: sum(dims(s)) / prod(dims(s)) for s in SITES}
    total, dense = density * sum(s.size for s in SITES), set()
    while True:
        free = [s for s in SITES if s.name not in dense]
        scale = (total - sum(s.size for s in SITES if s.name in dense)) / sum(raw[s.name] * s.size for s in free)
        over = [s.name for s in free if scale * raw[s.name] > 1]
        if not over:
            break
        dense.add(max(over, key=raw.__getitem__))
    counts = ERK()(SITES, Density(density), evidence=NOTHING)
    for s in SITES:
        assert abs(counts[s.name] - (s.size if s.name in dense else scale * raw[s.name] * s.size)) <= 1


def test_erk_takes_the_kernel_of_a_convolution():
    assert dims(SITES[0]) == (16, 3, 3, 3)
    assert dims(SITES[1]) == (64, 48)
    flat = [site("conv", 16, 27), *SITES[1:]]
    assert ERK()(SITES, Density(0.1), evidence=NOTHING) != ERK()(flat, Density(0.1), evidence=NOTHING)


def test_plus_variants_keep_the_ends():
    first, last = SITES[0], SITES[-1]
    plus = UniformPlus()(SITES, Density(0.15), evidence=NOTHING)
    assert plus["conv"] == first.size and plus["head"] == 256 == round(0.2 * last.size)
    assert abs(plus["a"] / 3072 - plus["b"] / 8192) < 1e-3
    assert ERKPlus()(SITES, Density(0.15), evidence=NOTHING)["head"] == last.size
    assert ERK()(SITES, Density(0.05), evidence=NOTHING)["head"] < last.size


def test_balanced_gives_the_same_number_and_pyramidal_the_same_ratio():
    balanced = Balanced()(SITES, Density(0.2), evidence=NOTHING)
    assert balanced["conv"] == 432
    free = [k for s in SITES if (k := balanced[s.name]) < s.size]
    assert max(free) - min(free) <= 1 and all(balanced[s.name] <= max(free) for s in SITES)
    pyramid = Pyramidal()(SITES, Density(0.2), evidence=NOTHING)
    density = [pyramid[s.name] / s.size for s in SITES]
    for level, p in enumerate(density, start=1):
        assert abs(p - density[1] ** (level / 2)) < 2e-3


def test_global_keeps_the_largest_of_all():
    facts = evidence(SITES)
    counts = Global()(SITES, Count(3000), evidence=facts)
    every = torch.cat([facts.weight(s.name).abs().flatten() for s in SITES])
    cut = every.sort(descending=True).values[2999]
    assert counts == {s.name: int((facts.weight(s.name).abs() >= cut).sum()) for s in SITES}


def test_owl_equals_a_hand_calculation():
    sites = [site(n, 2, 50) for n in ("0.a", "0.b", "1.a", "1.b", "2.a", "2.b")]
    weight = {s.name: torch.ones(2, 50) for s in sites}
    weight["1.a"][0, :3] = 100.0  # 3 outliers of 200 entries: 1.5 %
    weight["2.b"][1, :6] = 50.0  # 6 outliers of 200 entries: 3 %
    stats = {s.name: Stats.collecting({InputMoments}, s.shape) for s in sites}
    for s in stats.values():
        s.feed("input", torch.ones(4, 50))
    facts = Evidence(weight=weight.__getitem__, stats=stats, block={s.name: int(s.name[0]) for s in sites})
    counts = OWL()(sites, Density(0.3), evidence=facts)
    # D = 0, 1.5, 3 -> keep = 0, .08, .16 -> shifted to mean .3: .22, .30, .38
    assert [counts[s.name] for s in sites] == [22, 22, 30, 30, 38, 38]


def test_dlp_gives_more_where_the_typical_score_is_low():
    sites = [site(n, 2, 50) for n in ("0", "1", "2")]
    stats = {s.name: Stats.collecting({InputMoments}, s.shape) for s in sites}
    for s in stats.values():
        s.feed("input", torch.ones(4, 50))
    facts = Evidence(lambda n: torch.full((2, 50), float(n) + 1), stats, block={s.name: int(s.name) for s in sites})
    # medians 1, 2, 3 -> I = 5/6, 4/6, 3/6 -> keep = .3, .15, 0 -> shifted to mean .4: .55, .40, .25
    assert list(DLP()(sites, Density(0.4), evidence=facts).values()) == [55, 40, 25]


def test_sites_outside_the_blocks_keep_the_mean_density():
    sites = [site(n, 2, 50) for n in ("0", "1", "head")]
    stats = {s.name: Stats.collecting({InputMoments}, s.shape) for s in sites}
    for s in stats.values():
        s.feed("input", torch.ones(4, 50))
    facts = Evidence(lambda n: torch.full((2, 50), 1.0 + (n == "1")), stats, block={"0": 0, "1": 1})
    assert list(DLP(alpha=0.1)(sites, Density(0.5), evidence=facts).values()) == [60, 40, 50]
    assert affine(np.ones(3), 0.2).tolist() == [0, 0, 0]


costs_and_errors = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=50)
@given(tables=costs_and_errors, total=st.integers(0, 60))
def test_knapsack_is_optimal(tables, total):
    costs = [np.array([c for c, _ in t]) for t in tables]
    errors = [np.array([e for _, e in t]) for t in tables]
    feasible = [
        sum(e[i] for e, i in zip(errors, choice, strict=True))
        for choice in product(*(range(len(c)) for c in costs))
        if sum(int(c[i]) for c, i in zip(costs, choice, strict=True)) <= total
    ]
    if not feasible:
        with pytest.raises(BudgetError, match="lowest densities"):
            cheapest(costs, errors, total)
        return
    chosen = cheapest(costs, errors, total)
    assert sum(int(c[i]) for c, i in zip(costs, chosen, strict=True)) <= total
    assert abs(sum(e[i] for e, i in zip(errors, chosen, strict=True)) - min(feasible)) < 1e-9


def test_knapsack_with_few_states_stays_close():
    g = np.random.default_rng(0)
    costs = [np.arange(1, 9) * int(n) for n in g.integers(1000, 9000, 20)]
    errors = [np.sort(g.random(8))[::-1] for _ in costs]
    total = int(0.5 * sum(c[-1] for c in costs))
    loss = lambda chosen: sum(e[i] for e, i in zip(errors, chosen, strict=True))  # noqa: E731
    exact, thin = loss(cheapest(costs, errors, total, states=10**6)), loss(cheapest(costs, errors, total, states=300))
    assert exact <= thin < 1.05 * exact


def test_dp_gives_sensitive_sites_more_than_uniform():
    sites = [site(n, 10, 10) for n in ("low", "high")]
    facts = Evidence(lambda n: torch.ones(10, 10), error=lambda n, d: (1 if n == "low" else 100) * (1 - d) ** 2)
    counts = SensitivityDP()(sites, Density(0.5), evidence=facts)
    assert counts == {"low": 10, "high": 90}
    with pytest.raises(MissingStatError, match="error curves"):
        SensitivityDP()(sites, Density(0.5), evidence=NOTHING)
    with pytest.raises(BudgetError, match="grid"):
        SensitivityDP(densities=(1.5,))


@settings(deadline=None, max_examples=50)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), highs=st.lists(st.integers(0, 50), min_size=6, max_size=6),
    share=st.floats(0, 1),
)  # fmt: skip
def test_fit_scales_clips_and_redistributes(weights, highs, share):
    highs = highs[: len(weights)]
    total = int(share * sum(highs))
    counts = fit(lambda c: c * np.array(weights), total, [0] * len(highs), highs)
    assert sum(counts) == total and all(0 <= k <= h for k, h in zip(counts, highs, strict=True))
    free = [k / w for k, w, h in zip(counts, weights, highs, strict=True) if 0 < k < h]
    slack = max((1 / w for w in weights), default=0)
    assert not free or max(free) - min(free) <= 2 * slack + 1e-9


def test_rounding_gives_the_largest_remainders_first():
    assert to_integers(np.array([1.2, 1.5, 1.3]), 4, [0, 0, 0], [5, 5, 5]) == [1, 2, 1]
    assert to_integers(np.array([1.5, 1.5]), 3, [0, 0], [5, 5]) == [2, 1]
    assert to_integers(np.array([2.9, 0.1]), 3, [0, 0], [2, 5]) == [2, 1]


def test_impossible_bounds_are_refused_in_a_sentence():
    with pytest.raises(BudgetError, match=r"first site dense.*between .* the budget of 0 cannot be met"):
        UniformPlus()(SITES, Density(0.0), evidence=NOTHING)
    with pytest.raises(BudgetError, match="never reaches"):
        fit(lambda c: np.zeros(2), 3, [0, 0], [5, 5])
    with pytest.raises(BudgetError, match="integers within"):
        to_integers(np.array([1.0]), 3, [0], [2])

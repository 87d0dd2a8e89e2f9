from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import hypergeom

from sparseworks.codes.numerics import binary
from sparseworks.core.errors import BudgetError, ShapeError


def test_false_positives_are_as_the_law_says():
    n, a, s, theta, draws = 1024, 200, 20, 8, 20000
    g = torch.Generator().manual_seed(0)
    segment = binary.subsample(binary.random_codes(1, n, a, g)[0], s, g)
    found = (binary.overlap(binary.random_codes(draws, n, a, g), segment) >= theta).float().mean().item()
    law = binary.false_positive(n, a, s, theta)
    assert law == pytest.approx(0.02689, abs=1e-5) and law == pytest.approx(hypergeom(n, s, a).sf(theta - 1))
    assert abs(found - law) < 3 * math.sqrt(law * (1 - law) / draws)


def test_false_negatives_are_as_the_law_says():
    a, s, theta, noise, draws = 40, 20, 12, 0.4, 20000
    g = torch.Generator().manual_seed(1)
    stored = torch.rand(draws, a, generator=g).argsort(1).argsort(1) < s
    alive = torch.rand(draws, a, generator=g).argsort(1).argsort(1) < round(0.6 * a)
    found = (binary.overlap(stored, alive) < theta).float().mean().item()
    law = binary.false_negative(a, s, theta, noise)
    assert abs(found - law) < 3 * math.sqrt(law * (1 - law) / draws)


def test_unions_on_one_segment_are_as_the_law_says():
    n, s, patterns = 500, 12, 20
    g = torch.Generator().manual_seed(2)
    sizes = torch.tensor([float(binary.union(binary.random_codes(patterns, n, s, g)).sum()) for _ in range(400)])
    assert float(sizes.mean()) == pytest.approx(binary.union_size(n, s, patterns), abs=4 * float(sizes.std()) / 20)
    one, many = (binary.false_positive(n, 40, u, 8) for u in (s, binary.union_size(n, s, patterns)))
    assert many > 100 * one


def test_errors_fall_faster_than_exponentially_in_n_at_a_fixed_share():
    logs = [math.log(binary.false_positive(n, n // 20, n // 40, n // 80)) for n in (400, 800, 1600, 3200)]
    falls = [a - b for a, b in itertools.pairwise(logs)]
    assert all(later > 1.8 * earlier for earlier, later in itertools.pairwise(falls))


def test_edges_of_the_laws():
    assert binary.false_positive(100, 10, 5, 0) == 1 and binary.false_positive(100, 10, 5, 6) == 0
    assert binary.false_negative(10, 5, 5, 0.0) == pytest.approx(0) and binary.false_negative(10, 5, 1, 1.0) == 1
    assert binary.any_of(0.01, 50) == pytest.approx(1 - 0.99**50) and binary.any_of(1.0, 3) == 1
    assert binary.random_codes(3, 20, 7).sum(1).tolist() == [7, 7, 7]


def test_what_is_impossible_is_refused():
    code = torch.tensor([True, False, True])
    for bad in (lambda: binary.false_positive(10, 11, 1, 1), lambda: binary.subsample(code, 3),
                lambda: binary.false_negative(10, 5, 2, 1.5), lambda: binary.random_codes(1, 3, 4)):  # fmt: skip
        with pytest.raises(BudgetError):
            bad()
    with pytest.raises(ShapeError):
        binary.overlap(code, torch.ones(4, dtype=torch.bool))

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from sparseworks.codes.numerics.binary import random_codes
from sparseworks.codes.numerics.sparsey import Sparsey
from sparseworks.core.errors import BudgetError, ShapeError

INPUTS, ACTIVE = 400, 20


def morphs(pattern, generator):
    """The pattern with 0, 1, ... all of its active inputs replaced by others: (share kept, morph)."""
    on, off = pattern.nonzero()[:, 0], (~pattern).nonzero()[:, 0]
    for moved in range(0, ACTIVE + 1, 2):
        other = pattern.clone()
        other[on[torch.randperm(len(on), generator=generator)[:moved]]] = False
        other[off[torch.randperm(len(off), generator=generator)[:moved]]] = True
        yield 1 - moved / ACTIVE, other


def similarity(chi):
    """Rank correlation of input overlap with code overlap, morphs of stored patterns."""
    generator = torch.Generator().manual_seed(0)
    near, same = [], []
    for seed in range(12):
        memory = Sparsey(INPUTS, chi=chi, seed=seed)
        patterns = random_codes(5, INPUTS, ACTIVE, generator)
        codes = memory.store(patterns)
        for share, morph in morphs(patterns[0], generator):
            near.append(share)
            same.append(float((memory.code(morph) == codes[0]).float().mean()))
    return spearmanr(near, same).statistic


def test_a_hundred_patterns_are_recalled_after_one_trial():
    patterns = random_codes(100, INPUTS, ACTIVE, torch.Generator().manual_seed(1))
    memory = Sparsey(INPUTS, modules=24, units=8)
    codes = memory.store(patterns)
    found = torch.stack([memory.recall(p) for p in patterns])
    assert (found == codes).float().mean() >= 0.95
    assert all(memory.familiarity(p) == 1 for p in patterns)
    assert memory.familiarity(random_codes(1, INPUTS, ACTIVE, torch.Generator().manual_seed(9))[0]) < 0.9


def test_codes_of_similar_inputs_are_similar_and_not_if_draws_are_uniform():
    assert similarity(chi=100.0) > 0.8
    assert abs(similarity(chi=0.0)) < 0.3


def test_the_draw_is_the_formula():
    memory = Sparsey(6, modules=2, units=3, floor=0.0, chi=4.0, gamma=1.0, sigmoid=(2.0, 3.0, 0.5, 1.5))
    memory.weights[0, 1, :2] = True
    memory.weights[1, 2, 0] = True
    x = torch.tensor([True, True, False, False, False, False])
    sums = memory._sums(x)
    assert sums.tolist() == [[0, 1, 0], [0, 0, 0.5]] and memory.familiarity(x) == 0.75
    eta = 1 + 4 * 3 * 0.75
    wanted = 1 + (eta - 1) / (1 + 2 * torch.exp(-3 * (sums - 0.5))) ** 1.5
    assert torch.allclose(memory._chances(sums), wanted)


def test_bad_patterns_are_refused():
    with pytest.raises(BudgetError):
        Sparsey(10, modules=0)
    memory = Sparsey(10)
    for bad in (torch.zeros(10, dtype=torch.bool), torch.ones(9, dtype=torch.bool), torch.ones(10)):
        with pytest.raises(ShapeError):
            memory.code(bad)

"""Learning a dictionary: unit atoms, unused ones replaced, coder and loss as plug-ins, bad operands refused."""

from __future__ import annotations

import pytest
import torch

from sparseworks.codes.dictionary import Masked, Plain, learn_dictionary, recovery_error
from sparseworks.core.budget import Count
from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError, UnknownNameError
from sparseworks.solve.coders import OMP, Thresholding
from sparseworks.solve.penalties import CEL0
from sparseworks.testing.pursuit import planted

CODER = OMP(Count(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["plain", "masked"])
def test_learning_lowers_the_loss_and_finds_planted_atoms(dtype, loss):
    d, _, y = planted(signals=400, atoms=12, features=16, k=2, dtype=dtype)
    learnt = learn_dictionary(y, 12, CODER, loss=loss, epochs=40, rate=2e-2)
    assert learnt.dictionary.dtype == dtype and len(learnt.losses) == 40
    torch.testing.assert_close(learnt.dictionary.norm(dim=1), torch.ones(12, dtype=dtype))
    assert sum(learnt.losses[-5:]) / 5 < (0.3 if loss == "plain" else 0.9) * learnt.losses[0]
    start = learn_dictionary(y, 12, CODER, epochs=0).dictionary
    assert recovery_error(d, learnt.dictionary) < 0.5 * recovery_error(d, start)


def test_the_seed_decides_and_a_start_is_kept_as_it_was():
    d, _, y = planted(signals=100, atoms=12, features=16, k=2)
    start = d + 0.1
    kept = start.clone()
    runs = [learn_dictionary(y, 12, CODER, start=start, epochs=3, batch=30, seed=s).dictionary for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2]) and torch.equal(start, kept)


def test_atoms_that_nobody_uses_become_signals():
    _, _, y = planted(signals=100, atoms=12, features=16, k=2)
    start = torch.zeros(14, 16, dtype=y.dtype)
    start[:12] = learn_dictionary(y, 12, CODER, epochs=0).dictionary
    idle = learn_dictionary(y, 14, CODER, start=start, epochs=4, replace_unused=False)
    busy = learn_dictionary(y, 14, CODER, start=start, epochs=4)
    assert idle.replaced == 0 and not bool(idle.dictionary[12:].any())
    assert busy.replaced >= 2 and busy.losses[-1] < idle.losses[-1]
    torch.testing.assert_close(busy.dictionary.norm(dim=1), torch.ones(14, dtype=y.dtype))


def test_few_signals_and_signals_of_zeros_still_give_a_dictionary():
    y = torch.zeros(3, 6)
    y[0] = torch.arange(6.0)
    learnt = learn_dictionary(y, 5, OMP(Count(1)), epochs=2)
    assert bool(torch.isfinite(learnt.dictionary).all()) and learnt.dictionary.shape == (5, 6)
    torch.testing.assert_close(learnt.dictionary.norm(dim=1), torch.ones(5))


def test_the_masked_loss_hides_other_coordinates_every_time():
    draw = torch.Generator().manual_seed(0)
    splits = [Masked(0.25).split(12, draw) for _ in range(3)]
    for seen, hidden in splits:
        assert sorted([*seen.tolist(), *hidden.tolist()]) == list(range(12)) and len(hidden) == 3
    assert len({tuple(hidden.tolist()) for _, hidden in splits}) > 1
    assert from_config("dictionary loss", to_config(Masked(0.25))) == Masked(0.25)
    assert Plain().split(3, draw)[0].tolist() == [0, 1, 2]


def test_any_coder_will_do():
    _, _, y = planted(signals=100, atoms=12, features=16, k=2)
    learnt = learn_dictionary(y, 12, Thresholding(penalty=CEL0(0.05), rounds=50), epochs=5, rate=1e-2)
    assert learnt.losses[-1] < learnt.losses[0]
    assert learn_dictionary(y, 12, "mp", epochs=1).losses[0] > 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"signals": torch.zeros(0, 4)}, ShapeError),
        ({"signals": torch.zeros(4)}, ShapeError),
        ({"signals": torch.zeros(4, 4, dtype=torch.long)}, DtypeError),
        ({"signals": torch.full((4, 4), torch.nan)}, NonFiniteError),
        ({"atoms": 0}, BudgetError),
        ({"batch": 0}, BudgetError),
        ({"epochs": -1}, BudgetError),
        ({"start": torch.zeros(3, 4)}, ShapeError),
        ({"loss": "hidden"}, UnknownNameError),
        ({"coder": "ompp"}, UnknownNameError),
    ],
)
def test_bad_operands_are_refused(change, error):
    operands = {"signals": torch.ones(5, 4), "atoms": 4, "coder": OMP(Count(1)), "epochs": 1, **change}
    with pytest.raises(error):
        learn_dictionary(operands.pop("signals"), operands.pop("atoms"), operands.pop("coder"), **operands)


def test_shares_that_hide_all_or_nothing_are_refused():
    for share in (0.0, 1.0):
        with pytest.raises(BudgetError, match="between 0 and 1"):
            Masked(share)
    with pytest.raises(ShapeError, match="single coordinate"):
        Masked().split(1, torch.Generator())

"""Operators that are trained from scratch: products and gradients equal to the dense form, counts, state, and what is remembered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.butterfly import flat_butterfly
from sparseworks.core.errors import BudgetError, ModelError, ShapeError
from sparseworks.core.operator import Stored, describe, rebuild
from sparseworks.core.support import Support
from sparseworks.weights.factors import Blend, BlockSparse, Matrix, Pixelfly, SLTrain, SparseLowRank
from sparseworks.weights.factors.blocksparse import fresh_blocks


def uneven() -> Support:
    """Lines with one, no and all blocks."""
    return Support.from_mask(torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.bool))


def thin(rank: int = 2) -> SparseLowRank:
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(24 * 20, generator=generator)[:30].sort().values
    return SparseLowRank(torch.randn(24, rank), torch.randn(rank, 20), torch.randn(30), places, 0.5)


CASES = {
    "block_sparse": lambda: BlockSparse(torch.randn(5, 4, 4), uneven()),
    "no_blocks": lambda: BlockSparse(torch.randn(0, 4, 4), Support.from_mask(torch.zeros(2, 3, dtype=torch.bool))),
    "blend": lambda: Blend([BlockSparse(torch.randn(5, 4, 4), uneven()), Matrix(torch.randn(16, 12))], 0.3),
    "sparse_low_rank_in_parts": thin,
    "sparse_low_rank_written_out": lambda: thin(rank=12),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_product_and_all_gradients_are_those_of_the_dense_form(case, dtype):
    operator = CASES[case]().to(dtype)
    x = torch.randn(2, 5, operator.in_features, dtype=dtype, requires_grad=True)
    of = [x, *operator.parameters()]
    y, wanted = operator(x), x @ operator.dense().T
    dy = torch.randn_like(y)
    assert torch.allclose(y, wanted, atol=1e-5)
    found, right = (torch.autograd.grad(t, of, dy, allow_unused=True) for t in (y, wanted))
    for a, b in zip(found, right, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert operator(x.detach()[0, 0]).shape == (operator.out_features,)
    with pytest.raises(ShapeError):
        operator(torch.randn(3, operator.in_features + 1, dtype=dtype))


@pytest.mark.parametrize("case", CASES)
def test_it_is_rebuilt_from_plain_data_and_its_state(case):
    operator = CASES[case]()
    operator.bias = nn.Parameter(torch.randn(operator.out_features))
    again, x = rebuild(describe(operator)), torch.randn(3, operator.in_features)
    again(x)  # what it derives of its places is made again when others are loaded
    again.load_state_dict(operator.state_dict())
    assert torch.equal(again(x), operator(x)) and again.stored == operator.stored
    assert torch.equal(copy.deepcopy(operator)(x), operator(x))


def test_what_is_stored_and_multiplied_is_counted():
    assert CASES["block_sparse"]().stored == Stored(80, 12) and CASES["block_sparse"]().macs == 80
    assert CASES["blend"]().stored == Stored(80 + 16 * 12 + 1, 12) and CASES["blend"]().macs == 80 + 16 * 12
    assert thin().stored == Stored(2 * 44 + 30, 32 * 30) and thin().macs == 2 * 44 + 30
    grid = flat_butterfly(4, 4, 1)
    blocks = BlockSparse.of(torch.randn(16, 16), grid)
    assert blocks.grid == grid and blocks.support.density == grid.density
    with pytest.raises(ShapeError, match="squares"):
        BlockSparse.of(torch.randn(16, 8), grid)
    with pytest.raises(ShapeError, match="kept blocks"):
        BlockSparse(torch.randn(3, 4, 4), grid)


@pytest.mark.parametrize("rank", [2, 12])
def test_between_the_passes_nothing_of_the_size_of_the_matrix_is_remembered(rank):
    operator, sizes = thin(rank), []
    keep = lambda t: sizes.append(t.numel()) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = operator(torch.randn(3, 20))
    assert sizes and max(sizes) < 24 * 20
    y.sum().backward()
    assert operator.values.grad.shape == (30,)


class TestStart:
    def test_sltrain_starts_as_the_paper_says(self):
        form, method = SLTrain(density=0.05), sw.method("sltrain")
        operator = form.start((200, 100), method, 10_000, torch.Generator().manual_seed(0))
        assert operator.values.numel() == 1000 and operator.rank == (10_000 - 3000) // 300 and operator.scale == 0.25
        assert not operator.up.any() and operator.stored.words() <= 10_000
        assert operator.values.abs().max() <= 0.1 and operator.values.std().item() == pytest.approx(
            0.1 / 3**0.5, rel=0.1
        )
        assert operator.down.abs().max() <= 0.1
        assert bool((operator.places.diff() > 0).all()) and operator.support.count == 1000

    def test_the_optimiser_holds_as_many_numbers_as_are_counted(self):
        operator = SLTrain().start((64, 48), sw.method("sltrain"), 1500)
        optimizer = torch.optim.Adam(operator.parameters())
        operator(torch.randn(4, 48)).sum().backward()
        optimizer.step()
        held = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
        assert sum(v.nbytes for v in held) == 2 * 4 * operator.stored.numbers

    def test_fresh_blocks_keep_the_variance_of_a_dense_layer(self):
        operator = fresh_blocks(flat_butterfly(8, 8, 1), 32, torch.Generator().manual_seed(0))
        dense, x = nn.Linear(256, 256, bias=False), torch.randn(512, 256)
        assert operator(x).var().item() == pytest.approx(dense(x).var().item(), rel=0.1)

    @pytest.mark.parametrize("density", [0.2, 0.25, 0.4, 0.6])
    def test_pixelfly_fills_its_words_and_no_more(self, density):
        words = int(density * 256 * 512)
        operator = Pixelfly().start((512, 256), sw.method("pixelfly"), words)
        blocks, factors = operator.operators()
        assert 0.95 * words - (512 + 256) < operator.stored.words() <= words
        assert blocks.block == 32 and 0.25 * words - 768 <= factors.stored.numbers and operator.share.item() == 0.5

    def test_budgets_that_are_too_small_are_refused(self):
        with pytest.raises(BudgetError, match="rank 1"):
            SLTrain().start((64, 64), sw.method("sltrain"), 200)
        with pytest.raises(BudgetError, match="rank 1"):
            Pixelfly().start((64, 64), sw.method("pixelfly"), 500)
        for wrong in (
            lambda: SLTrain(density=0.0),
            lambda: SLTrain(scale=0.0),
            lambda: Pixelfly(block=24),
            lambda: Pixelfly(low_rank=1),
        ):
            with pytest.raises(BudgetError):
                wrong()


@pytest.mark.parametrize("name", ["sltrain", "pixelfly"])
def test_a_fit_is_exact_on_its_own_matrices_and_better_than_its_parts(name):
    weight, method = torch.randn(64, 64), sw.method(name, density=0.5)
    operator = sw.factorise_matrix(weight, method)
    first = sw.factorise_matrix(weight, method.with_(form=type(method.form)(sweeps=1)))
    assert (operator.dense() - weight).norm() <= (first.dense() - weight).norm()
    assert operator.stored.words() <= 0.5 * 64 * 64
    if name == "pixelfly":
        blocks, _ = operator.operators()
        inside = torch.where(blocks.support.mask(), weight, 0.0)  # no low rank is left over
        again = sw.factorise_matrix(inside, method)
        assert (again.dense() - inside).norm() < 1e-4 * inside.norm()


class TestReparametrise:
    def test_layers_get_random_operators_of_the_budget_and_keep_their_biases(self, tower, batches):
        dense, model = tower(), tower()
        made = sw.reparametrise(model, sw.method("sltrain", density=0.8), skip=["last"])
        assert list(made) == [s.name for s in sw.sites(dense) if s.name != "last"]
        assert all(model.get_submodule(name) is operator for name, operator in made.items())
        assert all(o.stored.words() <= 0.8 * o.in_features * o.out_features for o in made.values())
        assert torch.equal(model.first.bias, dense.first.bias) and isinstance(model.last, nn.Linear)
        assert model(batches[0]).shape == dense(batches[0]).shape
        places = [made[f"blocks.{i}.up"].places for i in range(3)]
        assert not torch.equal(places[0], places[1]) and not torch.equal(places[1], places[2])

    def test_a_seed_gives_the_same_operators(self, tower):
        def weight(seed):
            model = tower()
            sw.reparametrise(model, sw.method("pixelfly", density=0.6), skip=["last"], seed=seed)
            return model.blocks[1].up.weight

        assert torch.equal(weight(3), weight(3)) and not torch.equal(weight(3), weight(4))

    def test_any_form_that_has_a_start_will_do_and_others_are_refused(self, tower):
        assert len(sw.reparametrise(tower(), sw.method("monarch", density=0.8), skip=["last"])) == 7
        with pytest.raises(ModelError, match="has no form"):
            sw.reparametrise(tower(), "wanda")
        with pytest.raises(ModelError, match="Nothing to replace"):
            sw.reparametrise(tower(), "sltrain", skip=["*"])
        with pytest.raises(BudgetError, match="first"):
            sw.reparametrise(tower(), sw.method("sltrain", density=0.01))

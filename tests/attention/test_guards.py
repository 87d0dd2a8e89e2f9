"""A guard for every head under an error bound: cheaper than one for all, and no further from dense attention than asked."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Heads, blocks, select, sparse_attention
from sparseworks.attention.guards import WHOLE, Guard, choose_guards, choose_margins, guards, judge, with_guards
from sparseworks.attention.profile import tune_guards
from sparseworks.attention.scores import SelfSimilar
from sparseworks.attention.skipping import attend_skipping
from sparseworks.core.budget import Mass
from sparseworks.core.errors import BudgetError, RecipeError
from sparseworks.evaluate.sequences import qkv

METHOD = sw.method("spargeattn", pattern=blocks(32), always=None)


def different(seed: int) -> Heads:
    """A smooth and peaked head, a flat one, a restless one, and one whose tokens lie in no order."""
    parts = [
        qkv(512, heads=1, rho=0.99, scale=1.5, seed=seed),
        qkv(512, heads=1, rho=0.97, scale=0.5, seed=seed + 50),
        qkv(512, heads=1, rho=0.9, scale=1.0, seed=seed + 100),
        qkv(512, heads=1, rho=0.99, seed=seed + 150).shuffled(seed),
    ]
    return Heads(*(torch.cat(t, 1) for t in zip(*parts, strict=True)), causal=False)


def relative(out, exact):
    """sum |O - O'| / sum |O| of every head, by a loop."""
    return torch.tensor([float((a - b).abs().sum() / b.abs().sum()) for a, b in zip(out[0], exact[0], strict=True)])


@pytest.mark.parametrize("seed", [0, 10])
def test_a_guard_for_every_head_keeps_the_bound_on_other_calls_and_reads_less_than_one_for_all(seed, dense):
    grid = guards()
    judged = [judge(different(seed + i), METHOD, grid) for i in range(2)]
    plan = choose_guards(judged, grid, 0.08)
    assert plan[1] == WHOLE and len(set(plan)) > 2  # the flat head is nowhere sparse enough to be worth an error
    errors, densities = (torch.stack(t) for t in zip(*judged, strict=True))
    fits = (errors.amax(0) <= 0.08).all(-1)
    uniform = densities.mean((0, 2))[fits].min()  # the cheapest that serves all heads
    for i in (5, 6):
        heads = different(seed + i)
        (out, _), kept = sparse_attention(heads, with_guards(METHOD, plan))
        _, shipped = sparse_attention(heads.with_(memory={}), METHOD)
        assert float(relative(out, dense(heads)).max()) <= 0.08
        assert kept.density(heads) < min(float(uniform), shipped.density(heads)) - 0.08


def test_what_is_judged_is_the_error_and_the_density_of_each_head(dense):
    heads, grid = different(0), [Guard(0.7, 0.0), WHOLE]
    errors, densities = judge(heads, METHOD, grid)
    for guard, error, density in zip(grid, errors, densities, strict=True):
        method = METHOD.with_(score=SelfSimilar(guard.similarity), budget=Mass(guard.mass))
        (out, _), kept = sparse_attention(heads.with_(memory={}), method)
        torch.testing.assert_close(error, relative(out, dense(heads)), atol=1e-5, rtol=0)
        torch.testing.assert_close(density, kept.mask.float().mean((0, 2, 3)))
    assert errors[1].max() < 1e-5 and (densities[1] == 1).all()
    # The least density of those within the bound in every call, by a loop; a head that none serves is whole.
    wide = guards((0.3, 0.6, 0.9), (0.0, 0.5))
    judged = [judge(different(i), METHOD, wide) for i in (0, 1)]
    for head, guard in enumerate(choose_guards(judged, wide, 0.2)):
        fits = [i for i in range(len(wide)) if max(float(e[i, head]) for e, _ in judged) <= 0.2]
        prices = {i: sum(float(d[i, head]) for _, d in judged) / 2 for i in fits}
        best = min(prices, key=prices.__getitem__, default=None)
        assert guard == (WHOLE if best is None or prices[best] == 1 else wide[best])
    assert choose_guards(judged, wide, -1.0) == [WHOLE] * 4


def test_margins_are_the_least_that_keep_their_bound_and_are_each_heads_own(dense):
    """A flat head, and two that peak more and more."""
    calls, margins = [], (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    for seed in (0, 1):
        q, k, v = qkv(256, heads=3, rho=0.97, scale=1.5, seed=seed)
        calls.append(Heads(q * torch.tensor([0.1, 1.0, 3.0]).view(1, 3, 1, 1), k, v, causal=False))
    method = METHOD.with_(budget=Mass(1.0))
    chosen, shares = choose_margins(calls, method, 0.05, margins), []
    assert len(set(chosen.tolist())) > 1 and (choose_margins(calls, method, -1.0, margins) == torch.inf).all()
    less = torch.tensor([margins[max(margins.index(m) - 1, 0)] for m in chosen.tolist()])
    broken = torch.zeros(3, dtype=torch.bool)
    for heads in calls:
        kept, exact = select(heads, method), dense(heads)
        (out, _), share = attend_skipping(heads, kept, chosen)
        assert float(relative(out, exact).max()) <= 0.05
        shares.append(share)
        broken |= relative(attend_skipping(heads, kept, less)[0][0], exact) > 0.05
        torch.testing.assert_close(
            attend_skipping(heads, kept, 1.0), attend_skipping(heads, kept, torch.ones(3)), rtol=0, atol=0
        )
        assert attend_skipping(heads, kept, torch.full((3,), torch.inf))[1] == 0
    assert bool((broken | (chosen == 0)).all()) and min(shares) > 0.1


def test_guards_of_a_model_cost_less_perplexity_than_one_guard_at_equal_density():
    from sparseworks.evaluate import Perplexity, lm_windows
    from sparseworks.io import load_tokenizer

    name, length = "sparseworks/tiny-lm", 256
    tokenizer, model = load_tokenizer(name), sw.load(name).eval()
    docs = [[d for n in dir(part) if isinstance(d := getattr(part, n).__doc__, str)] for part in (torch.nn, torch)]
    texts, held_out = (lm_windows(part, tokenizer, length, samples=6) for part in docs)
    method, task = sw.method("spargeattn", pattern=blocks(16)), Perplexity(held_out.flatten(), length)
    recipe = tune_guards(model, texts[:4].split(2), method, bound=0.08)
    assert sw.Recipe.from_yaml(recipe.to_yaml()) == recipe
    found = []
    for one in (recipe, method.with_(score=SelfSimilar(0.0), budget=Mass(0.95)), method):
        with sw.attention(model, one) as run:
            found.append((task(model).value, run.density()))
    (tuned, density), (uniform, same), (shipped, nearly_all) = found
    assert density <= same + 0.01 < 0.55 and tuned < 0.985 * uniform
    assert density < 0.6 * nearly_all and tuned < 1.015 * shipped


def test_guards_refuse_what_they_cannot_judge():
    heads = different(0)
    with pytest.raises(RecipeError, match="self_similar"):
        judge(heads, sw.method("pooled_blocks", pattern=blocks(32)), guards())
    for call in (lambda: choose_guards([], guards()), lambda: choose_margins([], METHOD)):
        with pytest.raises(BudgetError, match="at least one call"):
            call()
    with pytest.raises(BudgetError, match="3 heads"):
        select(heads, with_guards(METHOD, [WHOLE] * 3))
    with pytest.raises(BudgetError, match=r"\[0, 1\]"):
        with_guards(METHOD, [Guard(1.5, 0.0)] * 4)
    with pytest.raises(BudgetError, match="at least one batch"):
        tune_guards(sw.load("sparseworks/tiny-lm"), [], METHOD)

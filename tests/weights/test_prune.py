"""The driver: equal to a naive loop, sequential, exact in counts, for every kind of site."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.core.budget import Density
from sparseworks.core.errors import (
    BudgetError,
    CalibrationError,
    DtypeError,
    MissingStatError,
    ModelError,
    NonFiniteError,
    PatternError,
    UnknownNameError,
)
from sparseworks.core.recipe import Recipe, Rule
from sparseworks.core.schedule import Rounds
from sparseworks.stream import InMemory, sites
from sparseworks.stream.activations import Activations
from sparseworks.weights import prune, streaming, track_movement


def quiet(model, method, data=None, **options):
    return prune(model, method, data, progress=False, **options)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[k] == b[k] for k in a)


# -- a naive loop, written with nothing but hooks and topk ----------------------------------------------------------


def naive_wanda(
    model: nn.Module, layers: list[nn.Module], batches, run, *, sequential: bool = True
) -> dict[str, Tensor]:
    """Wanda at 50 % per row, layer after layer, whole forward passes for each; masks by module name."""
    names = {m: n for n, m in model.named_modules()}
    per_layer = [[m for m in layer.modules() if isinstance(m, nn.Linear)] for layer in layers]
    masks: dict[str, Tensor] = {}
    for linears in per_layer if sequential else [[m for ms in per_layer for m in ms]]:
        square = input_squares(linears, batches, run)
        for m in linears:
            score = m.weight.detach().abs() * square[m].sqrt().float()
            keep = score.argsort(dim=1, descending=True, stable=True)[:, : m.in_features // 2]
            mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, keep, True)
            masks[names[m]] = mask
            m.weight.data.mul_(mask)
    return masks


def input_squares(linears: list[nn.Linear], batches, run) -> dict[nn.Module, Tensor]:
    square = {m: torch.zeros(m.in_features, dtype=torch.float64) for m in linears}
    real: Tensor | None = None

    def take(module, args):
        x = args[0] if real is None else args[0][real]
        square[module] += x.reshape(-1, x.shape[-1]).double().square().sum(0)

    hooks = [m.register_forward_pre_hook(take) for m in linears]
    with torch.no_grad():
        for batch in batches:
            real = batch["attention_mask"].bool() if isinstance(batch, dict) else None
            run(batch)
    for hook in hooks:
        hook.remove()
    return square


def test_equals_a_naive_loop_on_a_transformer(llama, tokens):
    model, plain = llama(), llama()
    found = quiet(model, sw.method("wanda"), tokens)
    expected = naive_wanda(plain, list(plain.model.layers), tokens, lambda b: plain(**b))
    assert found.supports.keys() == expected.keys() and len(expected) == 21
    for name, mask in expected.items():
        assert torch.equal(found.supports[name].mask(), mask), name
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_equals_a_naive_loop_on_a_sequential(batches):
    def build():
        torch.manual_seed(3)
        return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3)))

    model, plain = build(), build()
    found = quiet(model, sw.method("wanda"), batches)
    expected = naive_wanda(plain, list(plain), batches, plain)
    assert all(torch.equal(found.supports[name].mask(), mask) for name, mask in expected.items())


def test_later_blocks_see_pruned_earlier_ones(llama, tokens):
    found = quiet(llama(), sw.method("wanda"), tokens)
    plain = llama()
    dense = naive_wanda(plain, list(plain.model.layers), tokens, lambda b: plain(**b), sequential=False)
    first, later = "model.layers.0", "model.layers.2"
    differ = {n for n, m in dense.items() if not torch.equal(found.supports[n].mask(), m)}
    assert not any(n.startswith(first) for n in differ)
    assert any(n.startswith(later) for n in differ)


def test_padding_does_not_count(llama, tokens):
    other = [{k: v.clone() for k, v in b.items()} for b in tokens]
    other[1]["input_ids"][2:, 9:] = 7
    assert same(quiet(llama(), "wanda", tokens).supports, quiet(llama(), "wanda", other).supports)


# -- counts and patterns ------------------------------------------------------------------------------------------


def test_weights_are_zero_exactly_off_the_support(tower, batches):
    for name in ("magnitude", "wanda", "sparsegpt", "wanda_ls"):
        model = tower()
        found = quiet(model, sw.method(name, density=0.4), batches)
        for site in sites(model):
            weight, mask = site.read(model), found.supports[site.name].mask()
            assert torch.all(weight[~mask] == 0) and torch.all(weight[mask] != 0)


def test_the_budget_is_met_to_the_entry(tower, batches):
    for allocate in ("uniform", "erk", "uniform_plus"):
        model = tower()
        found = quiet(model, sw.method("wanda", density=0.37, allocate=allocate), batches)
        assert sum(r.count for r in found.rows) == Density(0.37).total({s.name: s.size for s in sites(model)})
        assert [r.name for r in found.rows] == [s.name for s in sites(model)] == list(found.supports)


def test_global_selection_is_by_one_threshold(tower):
    model, dense = tower(), tower()
    found = quiet(model, sw.method("magnitude_global", density=0.3))
    kept = torch.cat([s.read(dense)[found.supports[s.name].mask()].abs() for s in sites(dense)])
    lost = torch.cat([s.read(dense)[~found.supports[s.name].mask()].abs() for s in sites(dense)])
    assert kept.min() >= lost.max() and kept.numel() == round(0.3 * (kept.numel() + lost.numel()))
    assert len({round(r.density, 3) for r in found.rows}) > 1  # uniform shares would be the per-tensor baseline


def test_global_selection_leaves_values_to_the_repair(tower, batches):
    plain = quiet(tower(), sw.method("wanda", pattern="global"), batches)
    solved = quiet(tower(), sw.method("wanda_ls", pattern="global"), batches)
    assert same(plain.supports, solved.supports)
    assert sum(r.relative_error for r in solved.rows) < sum(r.relative_error for r in plain.rows)


def test_a_solver_that_selects_takes_the_counts_of_a_global_selection(tower, batches):
    masks = quiet(tower(), sw.method("obs", pattern="global"), batches)
    swept = quiet(tower(), sw.method("sparsegpt", pattern="global"), batches)
    assert [r.count for r in swept.rows] == [r.count for r in masks.rows]


def test_fixed_quotas_and_units(tower, batches):
    for pattern in ("2:4", "block:4x1", "fan-in", "2:4@out", "vnm:4:2:8"):
        found = quiet(tower(), sw.method("wanda", pattern=pattern), batches)
        assert all(sw.Pattern.parse(pattern).admits(s) for s in found.supports.values()), pattern


def test_rules_of_a_recipe_and_skip(tower, batches):
    recipe = Recipe((Rule(("*",), sw.method("wanda")), Rule(("blocks.1.*",), sw.method("magnitude", pattern="2:4"))))
    found = quiet(tower(), recipe, batches, skip=["last"])
    by_name = {r.name: r for r in found.rows}
    assert "last" not in by_name and by_name["blocks.1.up"].pattern == "2:4" and by_name["blocks.0.up"].pattern == "row"


def test_least_squares_lowers_the_error_of_the_same_masks(tower, batches):
    plain = quiet(tower(), "wanda", batches)
    solved = quiet(tower(), "wanda_ls", batches)
    first = plain.rows[0].name
    assert plain.supports[first] == solved.supports[first]
    assert solved.rows[0].relative_error < plain.rows[0].relative_error


# -- schedules, gradients, training statistics ----------------------------------------------------------------------


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("name", ["snip", "taylor", "grasp"])
def test_gradient_scores_are_taken_on_the_dense_model(tower, batches, name):
    model, dense = tower(), tower()
    found = quiet(model, sw.method(name, density=0.5), batches, loss=squared)
    if name == "snip":
        scores: dict[str, Tensor] = {}
        for batch in batches:
            dense.zero_grad()
            squared(dense, batch).backward()
            for s in sites(dense):
                scores[s.name] = scores.get(s.name, 0) + s.view(s.tensor(dense).grad).double()
        flat = torch.cat([(s.read(dense) * scores[s.name]).abs().flatten() for s in sites(dense)])
        kept = torch.cat([found.supports[s.name].mask().flatten() for s in sites(dense)])
        assert flat[kept].min() >= flat[~kept].max()
    assert not same(found.supports, quiet(tower(), "magnitude_global").supports)
    assert sum(s.count for s in found.supports.values()) == round(0.5 * sum(s.size for s in found.supports.values()))


def test_gradient_score_without_loss_or_data_is_refused(tower, batches):
    with pytest.raises(CalibrationError, match="loss"):
        quiet(tower(), "snip", batches)
    with pytest.raises(CalibrationError, match="WeightGradient"):
        quiet(tower(), "snip")


def test_synflow_in_rounds_spares_layers_that_one_shot_empties():
    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(16, 100, bias=False), nn.Linear(100, 100, bias=False), nn.Linear(100, 4, bias=False)
        )

    many = sw.method("synflow", density=0.005, schedule=Rounds(60))
    data = [torch.ones(1, 16)]
    dense = build()
    once = quiet(build(), many.with_(schedule=Rounds(1)), data)
    model = build()
    often = quiet(model, many, data)
    assert min(r.count for r in once.rows) == 0 < min(r.count for r in often.rows)
    assert sum(r.count for r in once.rows) == sum(r.count for r in often.rows)
    for s in sites(model):  # the rounds masked weights; on the support they are the dense ones again
        mask = often.supports[s.name].mask()
        assert torch.equal(s.read(model)[mask], s.read(dense)[mask])


def test_movement_needs_training_and_follows_it(tower, batches):
    with pytest.raises(MissingStatError, match="WeightMovement"):
        quiet(tower(), "movement", batches)
    model = tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    stats, handle = track_movement(optimizer, model, sites(model))
    expected = torch.zeros(16, 16)
    for batch in batches:
        optimizer.zero_grad()
        squared(model, batch).backward()
        expected -= model.first.weight.detach() * model.first.weight.grad
        optimizer.step()
    handle.remove()
    found = quiet(model, "movement", stats=stats)
    kept = found.supports["first"].mask()
    assert expected[kept].min() >= expected[~kept].max() and found.supports["first"].count == 128


def test_seeds_decide_what_is_random(tower):
    first, again, other = (quiet(tower(), "random", seed=s).supports for s in (0, 0, 1))
    recipe = Recipe.of(sw.method("random"))
    by_recipe = quiet(tower(), Recipe(recipe.rules, seed=1)).supports
    assert same(first, again) and not same(first, other) and same(other, by_recipe)


# -- kinds of sites -----------------------------------------------------------------------------------------------


def test_convolutions(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.Flatten(2))
    dense = {k: v.clone() for k, v in model.state_dict().items()}
    images = [torch.randn(2, 8, 6, 6) for _ in range(2)]
    found = quiet(model, sw.method("wanda", pattern="2:4"), images)
    assert set(found.supports) == {"0", "2[g0]", "2[g1]"}
    kept = (model[0].weight != 0).sum().item()
    assert kept == dense["0.weight"].numel() // 2
    # 2:4 runs along input channels at one kernel position, not along the kernel
    assert torch.all((model[0].weight != 0).reshape(16, 2, 4, 3, 3).sum(2) == 2)


def test_gpt2_conv1d_and_fused_qkv():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16)).eval()
    data = [{"input_ids": torch.randint(0, 32, (2, 8))} for _ in range(2)]
    found = quiet(model, sw.method("sparsegpt", pattern="row"), data)
    qkv = [f"transformer.h.0.attn.c_attn[{p}]" for p in "qkv"]
    assert set(qkv) <= set(found.supports) and all(found.supports[n].shape == (16, 16) for n in qkv)
    stored = model.transformer.h[0].attn.c_attn.weight  # (in, out)
    assert torch.equal(stored.T[:16] != 0, found.supports[qkv[0]].mask())
    assert all(torch.all(s.kept(sw.core.pattern.ROW) == s.shape[1] // 2) for s in found.supports.values())


def test_expert_stacks():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=32, num_local_experts=2, num_experts_per_tok=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    data = [{"input_ids": torch.randint(0, 32, (2, 8))} for _ in range(2)]
    found = quiet(model, "wanda", data)
    experts = [n for n in found.supports if "expert" in n]
    assert len(experts) >= 8 and all(found.supports[n].density == 0.5 for n in experts)
    for site in sites(model):
        assert torch.equal(site.read(model) != 0, found.supports[site.name].mask())


def test_tied_weights_are_pruned_once(llama, tokens):
    from transformers import LlamaForCausalLM

    config = llama().config.__class__(**{**llama().config.to_dict(), "tie_word_embeddings": True})
    model = LlamaForCausalLM(config).eval()
    everything = sites(model, include=["*"])
    found = quiet(model, "magnitude", sites=everything)
    assert "model.embed_tokens" in found.supports and "lm_head" not in found.supports
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight != 0, found.supports["model.embed_tokens"].mask())


def test_half_precision_weights_stay_half(tower, batches):
    model = tower().bfloat16()
    found = quiet(model, "wanda_ls", [b.bfloat16() for b in batches])
    assert model.blocks[0].up.weight.dtype == torch.bfloat16
    assert torch.equal(model.blocks[0].up.weight != 0, found.supports["blocks.0.up"].mask())


def test_bias_repair_moves_the_bias_and_refuses_layers_without(tower, batches):
    model, dense = tower(), tower()
    quiet(model, "wanda_bias", batches, skip=["blocks.*", "last"])
    x = torch.cat([b.reshape(-1, 16) for b in batches])
    assert torch.allclose(model.first(x).mean(0), dense.first(x).mean(0), atol=1e-4)
    assert not torch.allclose(model.first.bias, dense.first.bias)
    bare = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU())
    with pytest.raises(ModelError, match="'0' has no bias"):
        quiet(bare, "wanda_bias", batches)


# -- memory -------------------------------------------------------------------------------------------------------


def short_of_memory(monkeypatch, rows: int) -> list[int]:
    """Blocks run on at most `rows` rows at a time; returns the sizes that were tried."""
    tried: list[int] = []

    def forward(module, args, kwargs):
        tried.append(args[0].shape[0])
        if args[0].shape[0] > rows:
            raise MemoryError("injected")
        return module(*args, **kwargs)

    replay = streaming.replay
    monkeypatch.setattr(streaming, "replay", lambda *a, **k: replay(*a, **k, forward=forward))
    return tried


def test_running_out_of_memory_halves_the_batch(tower, batches, monkeypatch):
    roomy, whole = tower(), quiet(tower(), "wanda", batches)
    quiet(roomy, "wanda", batches)
    tried = short_of_memory(monkeypatch, rows=1)
    cramped = tower()
    assert same(quiet(cramped, "wanda", batches).supports, whole.supports)
    assert {1, 2, 4} == set(tried)
    assert all(torch.allclose(a, b) for a, b in zip(roomy.parameters(), cramped.parameters(), strict=True))


def test_a_row_that_does_not_fit_is_refused(tower, batches, monkeypatch):
    short_of_memory(monkeypatch, rows=0)
    with pytest.raises(CalibrationError, match=r"blocks\.0.*does not fit"):
        quiet(tower(), "wanda", batches)


def test_hidden_states_beyond_the_limit_lie_in_files(tower, batches, tmp_path, monkeypatch):
    made: list[Activations] = []

    class Watched(Activations):
        def __init__(self, **options):
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(streaming, "Activations", Watched)
    free = quiet(tower(), "wanda", batches)
    tight = quiet(tower(), "wanda", batches, memory_limit=1, workdir=tmp_path)
    assert same(free.supports, tight.supports)
    assert [m.mapped for m in made] == [0, 3] and made[1].resident == 0


def test_the_predicted_peak_comes_first(tower, batches, capsys):
    lines: list[str] = []
    found = prune(tower(), "wanda", batches, progress=False, say=lines.append)
    assert "predicted peak" in lines[0] and found.memory.total > found.memory.weights > 0
    prune(tower(), "wanda", batches)
    shown = capsys.readouterr()
    assert shown.out == "" and "predicted peak" in shown.err


def test_blocks_are_entered_and_left_as_changed(tower, batches):
    class Watched(InMemory):
        log: list[tuple[str, bool]] = []  # noqa: RUF012

        def leave(self, block, *, changed=False):
            self.log.append((block.name if block else "outside", changed))

    model = tower()
    quiet(model, "wanda", batches, residency=Watched(model))
    assert [name for name, changed in Watched.log if changed] == [
        "outside",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "outside",
    ]


# -- what is refused ----------------------------------------------------------------------------------------------


def test_refusals_name_the_place_and_change_nothing(tower, batches):
    model = tower()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CalibrationError, match=r"wanda.*calibration `data`"):
        quiet(model, "wanda")
    with pytest.raises(PatternError, match=r"'blocks\.0\.up'"):
        quiet(model, sw.method("wanda", pattern="2:5"), batches, skip=["first"])
    with pytest.raises(UnknownNameError, match="wanda"):
        quiet(model, "wandas", batches)
    with pytest.raises(ModelError, match="Nothing to prune"):
        quiet(model, "wanda", batches, skip=["*"])
    with pytest.raises(ModelError, match="Nothing to prune"):
        quiet(nn.ReLU(), "magnitude")
    with pytest.raises(BudgetError, match="cost"):
        quiet(model, sw.method("wanda", budget=sw.core.budget.Bytes(100.0)), batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_broken_weights_and_data_are_refused(tower, batches):
    model = tower()
    with torch.no_grad():
        model.blocks[1].up.weight[3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.up.*\[3, 2\]"):
        quiet(model, "magnitude")
    with pytest.raises(NonFiniteError, match="first"):
        quiet(tower(), "wanda", [batches[0], torch.full((4, 8, 16), torch.inf)])
    model = tower()
    model.first.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DtypeError, match="'first'"):
        quiet(model, "magnitude")


def test_modes_and_gradient_flags_come_back(tower, batches):
    model = tower().train()
    model.last.eval()
    model.first.weight.requires_grad_(False)
    quiet(model, "wanda", batches)
    assert model.training and not model.last.training and not model.first.weight.requires_grad
    assert model.last.weight.requires_grad and not model._forward_hooks


def test_function_and_module_share_a_name():
    assert importlib.import_module("sparseworks.weights.prune").prune is sw.prune is sw.weights.prune
    assert importlib.import_module("sparseworks.weights.recover").recover is sw.recover is sw.weights.recover

"""Benchmarks of attention: what their tables say of a method is what the method did."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import LlamaConfig, LlamaForCausalLM

from sparseworks.attention import Heads, Kept, sparse_attention
from sparseworks.attention.masks.flex import from_block_mask
from sparseworks.core.pattern import Tile
from sparseworks.evaluate import Perplexity
from sparseworks.evaluate.sequences import mass_rows, qkv

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "attention"


def script(name: str):
    """A module of `benchmarks/attention`, as when it is run; under a name that no other script has."""
    known = f"benchmarks_attention_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module, path = importlib.util.module_from_spec(spec), list(sys.path)
        sys.modules[known] = module
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = path
    return sys.modules[known]


# -- prefill ------------------------------------------------------------------------------------------------------


def test_recall_of_some_rows_is_that_of_the_whole_map():
    prefill, heads = script("prefill"), Heads(*qkv(256, 16, heads=2, shared=0.7, seed=0))
    method = prefill.chosen("pooled_blocks,no_such_method", 0.4)[0]
    _, kept = sparse_attention(heads, method)
    whole = mass_rows(heads.q, heads.k, kept.tokens(heads, slice(None)), causal=True)
    assert prefill.recall(heads, kept) == pytest.approx(float(whole[:, :, 3::4].mean()), abs=1e-5)
    assert prefill.recall(heads, None) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("unit", [Tile(64, 64), Tile(128, 64), Tile(64, 128)])
def test_flex_gets_the_kept_blocks_whole_below_the_diagonal(unit):
    prefill, heads = script("prefill"), Heads(*qkv(320, 16, heads=2, seed=0))
    allowed = heads.allowed(unit)
    mask = (torch.rand(1, 2, *allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.5) & allowed
    kept = Kept(mask, unit)
    assert prefill.by_blocks(kept) and not prefill.by_blocks(Kept(mask, Tile(64, 1))) and not prefill.by_blocks(None)
    given = prefill.block_mask(heads, kept)
    found = from_block_mask(given)
    at, to = torch.arange(320)[:, None], torch.arange(320)
    pairs = torch.stack([found.mask.mask_mod(320, 2)(torch.tensor(0), torch.tensor(h), at, to) for h in range(2)])
    assert torch.equal(pairs, kept.tokens(heads, slice(None))[0])
    assert not torch.diagonal(found.whole.mask(), dim1=-2, dim2=-1).any()


def test_slow_methods_are_called_once_and_said_so(monkeypatch):
    prefill = script("prefill")
    args, names = Namespace(density=0.4, rounds=1, flex=False), "pooled_blocks,sink_window"
    monkeypatch.setattr(prefill, "PATIENCE", 0.0)
    with torch.no_grad():
        one = prefill.at_length(256, 1, names, args)
        monkeypatch.setattr(prefill, "PATIENCE", 1e9)
        many = prefill.at_length(256, 1, names, args)
    assert [entry["case"].endswith("one call") for entry in one["lines"] + many["lines"]] == [True, True, False, False]
    assert [q["method"] for q in many["quality"]] == ["pooled_blocks", "sink_window"]
    first = many["quality"][0]
    assert first["density"] < 0.5 and first["recall"] < 1 and first["rel_l2"] > 0
    ceilings = [entry["ceiling_us"] for entry in many["lines"]]
    assert ceilings[0] == pytest.approx(ceilings[1] * first["density"])


# -- decode -------------------------------------------------------------------------------------------------------


@pytest.fixture
def decode(monkeypatch):
    """The script with a small layer."""
    module = script("decode")
    for name, value in {"HEADS": 4, "KV_HEADS": 2, "D": 16}.items():
        monkeypatch.setattr(module, name, value)
    return module


NAMES = ("quest", "lserve", "double_sparsity", "squeezed_attention", "shadowkv", "snapkv", "streaming_llm")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_what_a_step_attended_to(decode, name):
    tokens = 900
    given = decode.text("single keys", tokens)
    (method,) = decode.methods(name, 0.2, tokens)
    ours = decode.Ours(method, given, tokens)
    for at in range(3):
        now = tokens + at + 1
        q, k, v = given.q[:, :, now - 1 : now], given.k[:, :, :now], given.v[:, :, :now]
        out = ours.step(at)
        mask = ours.mask(q, now)
        assert mask.shape == (4, now) and 0 < float(mask.float().mean()) < 0.8
        wanted = sdpa(q, *(t.repeat_interleave(2, 1) for t in (k, v)), attn_mask=mask[None, :, None])
        torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)
        assert 0 < ours.must_read(q) < decode.dense_bytes(now)
        assert decode.recall(mask, q, k) < 1 - 1e-4 < decode.recall(torch.ones_like(mask), q, k)
    assert (ours.nbytes[1] > 0) == (name == "shadowkv")
    assert (ours.nbytes[0] < 0.5 * decode.dense_bytes(tokens)) == (name in ("snapkv", "streaming_llm"))


@torch.no_grad()
def test_dense_contenders_attend_to_everything_and_the_token(decode):
    given, tokens = decode.text("smooth", 200), 200
    kept, copied = decode.dense(given, tokens), decode.copied(given, tokens)
    for now in (201, 202):
        q, k, v = given.q[:, :, now - 1 : now], given.k[:, :, :now], given.v[:, :, :now]
        wanted = sdpa(q, k, v, enable_gqa=True)
        torch.testing.assert_close(kept(), wanted)
        torch.testing.assert_close(copied(), wanted)


@torch.no_grad()
def test_behind_a_context_every_contender_has_a_line_and_every_text_its_losses(decode):
    args = Namespace(methods="quest,snapkv", density=0.25, rounds=1, flex=False)
    found = decode.behind(512, args)
    assert [entry["ours"] for entry in found["lines"]] == ["quest", "snapkv", "transformers: copy, SDPA"]
    assert {(q["text"], q["method"]) for q in found["quality"]} == {
        (t, m) for t in ("single keys", "smooth") for m in ("quest", "snapkv")
    }
    read = {q["method"]: q["read"] for q in found["quality"] if q["text"] == "single keys"}
    bounds = {entry["ours"]: entry["ceiling_us"] for entry in found["lines"]}
    assert bounds["quest"] / bounds["snapkv"] == pytest.approx(read["quest"] / read["snapkv"])


# -- tasks --------------------------------------------------------------------------------------------------------


def small(vocabulary: int = 96) -> LlamaForCausalLM:
    """A decoder with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", script("tasks").PREFILL)
def test_methods_of_prefill_attend_to_less_when_asked_for_less(name):
    tasks, heads = script("tasks"), Heads(*qkv(512, 16, heads=2, shared=0.5, seed=0), layer=3, layers=4)
    found = [sparse_attention(heads, tasks.sized(name, d))[1].density(heads) for d in (0.5, 0.1)]
    assert found[1] < 0.4 and found[1] < 0.75 * found[0]


@pytest.mark.parametrize("name", (*script("tasks").DECODE, *script("tasks").CACHE))
def test_every_other_method_answers_at_its_size(name):
    tasks, model = script("tasks"), small()
    examples = tasks.passkey(2, 160, seed=0)
    one = tasks.answered(model, name, 0.1, "passkey", examples)
    assert one.label == name and one.density == 0.1 and one.record.structure == tasks.kind(name)
    if name in tasks.DECODE:
        assert one.record.more["attended"] < 0.7
    else:
        assert one.record.more["held_over_dense"] < 0.7


def test_tokens_fed_one_by_one_to_the_dense_model_have_the_perplexity_of_the_text(monkeypatch):
    tasks, model = script("tasks"), small()
    monkeypatch.setattr(tasks, "FED", 24)
    windows = torch.randint(96, (3, 64), generator=torch.Generator().manual_seed(0))
    one = tasks.one_by_one(model, windows, "dense", 1.0)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(windows).logits[:, :-1].mT, windows[:, 1:], reduction="none")
    assert one.record.value == pytest.approx(float(losses[:, -24:].mean().exp()), rel=1e-5)
    whole = tasks.at_once(model, windows, "dense", 1.0)
    assert whole.record.value == pytest.approx(Perplexity(windows.flatten(), 64)(model).value)
    assert not whole.record.higher_is_better and whole.record.method == "dense"


def test_of_books_the_one_that_was_held_out_is_read(tmp_path, monkeypatch):
    import gzip
    import json

    tasks, path = script("tasks"), tmp_path / "books.jsonl.gz"
    books = [{"title": "Emma", "text": "handsome, clever, and rich"}, {"title": tasks.NOVEL, "text": "London."}]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, books)).encode()))
    tokenizer = tasks.load_tokenizer("sparseworks/tiny-lm")
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = tasks.novel(path, tokenizer)
    assert torch.equal(found, tasks.lm_stream(["London."], tokenizer))


def test_a_run_of_tasks_that_was_cut_off_goes_on(tmp_path, monkeypatch, capsys):
    tasks, made = script("tasks"), []
    monkeypatch.setattr(tasks.sw, "load", lambda name: small())
    monkeypatch.setattr(tasks, "LENGTH", 160)
    answered = tasks.answered

    def counted(model, name, density, task, examples):
        made.append((task, name, density))
        if len(made) == 3:
            raise KeyboardInterrupt
        return answered(model, name, density, task, examples)

    monkeypatch.setattr(tasks, "answered", counted)
    args = Namespace(quick=True, rows=2, windows=1, data=None, methods="sink_window,snapkv")
    with pytest.raises(KeyboardInterrupt):
        tasks.run(tasks.Rows("x", {}, folder=tmp_path), args)
    rows = tasks.Rows("x", {}, folder=tmp_path)
    tasks.run(rows, args)
    assert len(made) == 1 + len(set(made)) == 1 + len(rows.rows)
    assert {(r.label, r.density) for r in rows.rows} == {("dense", 1.0), ("sink_window", 0.1)}
    rows.show()
    assert "majority: exact match" in capsys.readouterr().out

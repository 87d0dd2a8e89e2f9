"""The ragged cache: bytes fall, heads differ in length, `generate` with padding, beams, two turns; saved and loaded."""

from inspect import signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.attention.cache.store import RaggedStore
from sparseworks.core.errors import CheckpointError, ModelError, ShapeError
from sparseworks.testing.cache import dense, example_held, stored


def taking(model, cache):
    """The cache by the name that `model` takes it by: transformers 5.24 renamed it."""
    return {"cache" if "cache" in signature(model.forward).parameters else "past_key_values": cache}


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/tiny-lm").eval()


@pytest.fixture(scope="module")
def padded():
    ids = torch.randint(5, 4000, (2, 200), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    return {"input_ids": ids, "attention_mask": mask}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_store_holds_what_a_list_of_lists_would(data):
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    store, plain = RaggedStore(2, 2, 4), [[], [], [], []]
    for step in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.integers(1, 70))
        k, v = torch.randn(2, 2, n, 4, generator=draw), torch.randn(2, 2, n, 4, generator=draw)
        real = torch.rand(2, n, generator=draw) < 0.8
        at = torch.arange(n).expand(2, -1) + 100 * step
        store.append(k, v, at, real)
        for s in range(4):
            plain[s] += [(k[s // 2, s % 2, j], v[s // 2, s % 2, j], int(at[0, j])) for j in range(n) if real[s // 2, j]]
        mask = torch.rand(store.valid().shape, generator=draw) < 0.6
        store.keep(mask)
        plain = [[t for j, t in enumerate(p) if mask[s // 2, s % 2, j]] for s, p in enumerate(plain)]
    assert store.length.tolist() == [len(p) for p in plain]
    k, v, at = store.padded()
    for s, p in enumerate(plain):
        for j, (key, value, place) in enumerate(p):
            assert torch.equal(k[s // 2, s % 2, j], key) and torch.equal(v[s // 2, s % 2, j], value)
            assert at[s // 2, s % 2, j] == place
    q = torch.randn(2, 4, 3, 4, generator=draw)
    out, _ = store.attend(q)
    for b in range(2):
        for h in range(4):
            p = plain[b * 2 + h // 2]
            if p:
                keys, values = torch.stack([t[0] for t in p])[None, None], torch.stack([t[1] for t in p])[None, None]
                expected = dense(q[b : b + 1, h : h + 1], keys, values, 0.5)[0, 0]
                torch.testing.assert_close(out[b, h], expected, atol=1e-5, rtol=1e-5)


def test_beams_and_state_and_overwriting():
    held = example_held(80)
    store = stored(held)
    other = RaggedStore(1, 2, 16)
    other.load(store.state())
    assert other.batch == 2 and torch.equal(other.padded()[0], held.k)
    store.take(torch.tensor([1, 1, 0]))
    assert torch.equal(store.padded()[1], held.v[[1, 1, 0]])
    store.set_values(store.padded()[1] * 2)
    assert torch.equal(store.padded()[1], held.v[[1, 1, 0]] * 2)
    with pytest.raises(ShapeError, match="mask"):
        store.keep(torch.ones(1, 2, 3, dtype=torch.bool))


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_full_budget_generates_what_the_model_generates(model, padded, beams):
    options = {**padded, "max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    expected = model.generate(**options)
    with sw.attention(model, sw.method("snapkv", density=1.0)) as run:
        assert torch.equal(model.generate(**options), expected)
    assert run.held.get_seq_length() == 207


@torch.no_grad()
def test_bytes_fall_to_the_budget_and_padding_is_never_stored(model, padded):
    token = 2 * 32 * 4 + 4  # key, value and position of one head
    with sw.attention(model, sw.method("adakv", density=0.2)) as run:
        model.generate(**padded, max_new_tokens=4, do_sample=False)
    held = run.held.tokens
    assert held == 6 * 4 * (32 + 40 + 2 * 3)
    assert token * held <= run.held.nbytes <= token * (held + 6 * 8 * 20)
    lengths = torch.stack([layer.store.length for layer in run.held.held])
    assert lengths.float().std(1).max() > 1
    with sw.attention(model, sw.method("snapkv", density=1.0)) as run:
        model.generate(**padded, max_new_tokens=4, do_sample=False)
    assert run.held.tokens == 6 * 4 * (160 + 200 + 2 * 3)


@torch.no_grad()
def test_two_turns_equal_one_when_nothing_goes(model, padded, tmp_path):
    ids = padded["input_ids"][1:]
    expected = model(ids).logits[:, 150:]
    with sw.attention(model, sw.method("snapkv", density=1.0)) as run:
        cache = run.cache()
        model(ids[:, :150], **taking(model, cache))
        cache.save(tmp_path / "cache.safetensors")
        second = model(ids[:, 150:], **taking(model, cache)).logits
        again = run.cache()
        again.load(tmp_path / "cache.safetensors")
        assert again.get_seq_length() == 150
        resumed = model(ids[:, 150:], **taking(model, again)).logits
        cache.crop(-50)
        cropped = model(ids[:, 150:], **taking(model, cache)).logits
    for found in (second, resumed, cropped):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    (tmp_path / "cache.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be read"):
        again.load(tmp_path / "cache.safetensors")


@torch.no_grad()
def test_eviction_between_turns_and_while_decoding(model, padded):
    ids = padded["input_ids"][1:]
    with sw.attention(model, sw.method("h2o", budget={"count": {"value": 48}})) as run:
        model.generate(ids, max_new_tokens=8, do_sample=False)
        assert run.held.tokens == 6 * 4 * 48
        model(ids[:, :20], **taking(model, run.held))
        assert run.held.tokens == 6 * 4 * 48
    with sw.attention(model, "trianglemix", sw.method("snapkv", density=0.5)) as run:
        model.generate(ids, max_new_tokens=2, do_sample=False)
    assert run.methods and run.caching and run.held.tokens == 6 * 4 * (100 + 1)


@torch.no_grad()
def test_padding_in_a_later_turn_is_refused(model, padded):
    with sw.attention(model, sw.method("snapkv", density=1.0)) as run:
        cache = run.cache()
        model(padded["input_ids"], attention_mask=padded["attention_mask"], **taking(model, cache))
        later = torch.cat([padded["attention_mask"], torch.tensor([[0, 1], [1, 1]])], 1)
        with pytest.raises(ModelError, match="later turn"):
            model(padded["input_ids"][:, :2], attention_mask=later, **taking(model, cache))


PAGED = {"pattern": {"unit": [1, 64], "group": [1, None]}}


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_pages_of_a_full_budget_generate_what_the_model_generates(model, padded, beams):
    options = {**padded, "max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    expected = model.generate(**options)
    with sw.attention(model, sw.method("quest", density=1.0, **PAGED)) as run:
        assert torch.equal(model.generate(**options), expected)
    assert run.density("decode") == 1 and type(run.held.held[0]).__name__ == "PagedLayer"


@torch.no_grad()
def test_pages_read_what_the_budget_says_and_can_be_cropped(model, padded):
    ids = padded["input_ids"][1:]
    expected = model(ids).logits[:, 150:]
    with sw.attention(model, sw.method("quest", density=1.0, **PAGED)) as run:
        cache = run.cache()
        model(ids[:, :150], **taking(model, cache))
        second = model(ids[:, 150:], **taking(model, cache)).logits
        cache.crop(-50)
        stepwise = torch.cat([model(ids[:, i : i + 1], **taking(model, cache)).logits for i in range(150, 160)], 1)
    torch.testing.assert_close(second, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(stepwise, expected[:, :10], atol=2e-4, rtol=0)
    with sw.attention(model, sw.method("quest", budget={"count": {"value": 128}}, **PAGED)) as run:
        model.generate(ids, max_new_tokens=4, do_sample=False)
        assert run.density("decode") == 0.5  # two of four pages

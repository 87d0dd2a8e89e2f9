"""The index beside the cache: generation with beams, padding, turns; real bytes; cropped, saved and loaded."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.scores import Centroids, ChannelProduct, HeadVote, Landmarks, Nucleus, StreamingHeads
from sparseworks.attention.timing import Always
from sparseworks.core.budget import Count, Mass
from sparseworks.core.errors import ModelError

WHOLE = {
    "double_sparsity": {"density": 1.0},
    "twilight": {"budget": Mass(1.0), "score": Nucleus(share=1.0), "schedule": Always()},
    "lserve": {"density": 1.0, "score": StreamingHeads(share=0.0)},
    "squeezed_attention": {"density": 1.0},
}
FEW = {
    "double_sparsity": {"score": ChannelProduct(1 / 8, bits=4)},
    "twilight": {"score": Nucleus(ChannelProduct(1 / 8), least=32), "schedule": Always()},
    "lserve": {"budget": Count(64), "score": StreamingHeads(sink=4, window=16), "always": Sink(4) | Window(16)},
    "squeezed_attention": {"score": Centroids(recent=20)},
}


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/tiny-lm").eval()


@pytest.fixture(scope="module")
def padded():
    ids = torch.randint(5, 4000, (2, 160), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_full_budget_generates_what_the_model_generates(model, padded, name, beams):
    options = {**padded, "max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    expected = model.generate(**options)
    with sw.attention(model, sw.method(name, **WHOLE[name])) as run:
        assert torch.equal(model.generate(**options), expected)
    assert run.density("decode") > 0.99 and run.held.held[0].registered_name == "indexed"


@torch.no_grad()
@pytest.mark.parametrize("name", FEW)
def test_turns_crops_and_files_leave_what_one_pass_would(model, padded, name, tmp_path):
    """The same tokens decoded after a crop, after a file and after a reordering give the same; the index is as long as the cache."""
    ids = padded["input_ids"][1:]
    with sw.attention(model, sw.method(name, **FEW[name])) as run:
        cache = run.cache()
        model(ids[:, :150], cache=cache)
        cache.save(tmp_path / "cache.safetensors")
        step = lambda c: torch.cat([model(ids[:, i : i + 1], cache=c).logits for i in range(150, 155)], 1)  # noqa: E731
        once = step(cache)
        assert run.density("decode") < 0.6
        cache.crop(-5)
        torch.testing.assert_close(step(cache), once, atol=1e-4, rtol=0)
        again = run.cache()
        again.load(tmp_path / "cache.safetensors")
        torch.testing.assert_close(step(again), once, atol=1e-4, rtol=0)
        again.crop(-5)
        again.batch_repeat_interleave(2)
        twice = torch.cat([model(ids[:, i : i + 1].repeat(2, 1), cache=again).logits for i in range(150, 155)], 1)
        torch.testing.assert_close(twice[1:], once, atol=1e-4, rtol=0)


@torch.no_grad()
def test_bytes_are_those_of_the_storages(model, padded):
    """The labels of a sixteenth of 32 channels, and a step that reads them and a few tokens."""
    ids = padded["input_ids"][1:]
    with sw.attention(model, sw.method("double_sparsity", budget=Count(16))) as run:
        model.generate(ids, max_new_tokens=3, do_sample=False)
        layer = run.held.held[0]
        index = layer.indices[0]
        assert index.nbytes == 4 * (161 + 16) * 2 * 4 + 4 * 2 * 2  # room for 16 tokens from the first that came
        store = layer.store
        buffers = sum(t.untyped_storage().nbytes() for t in (store._k, store._v, store._at))
        assert layer.nbytes == buffers + index.nbytes
        assert layer.read == 4 * 16 * 2 * 32 * 4 + index.nbytes
        assert run.held.read < 0.2 * 6 * 4 * 162 * 2 * 32 * 4


@torch.no_grad()
def test_extremes_of_pages_are_held_beside_the_keys_and_counted(model, padded):
    """11 logical pages of 16 cover 163 tokens; sequences without padding hold more of them than those with it."""
    with sw.attention(model, sw.method("lserve", **FEW["lserve"])) as run:
        model.generate(**padded, max_new_tokens=4, do_sample=False)
    layer = run.held.held[0]
    pages = [-(-n // 16) for n in (123, 163)]
    for index, n in zip(layer.indices, pages, strict=True):
        assert index.inner.parts["most"].shape == (4, n, 32)
        assert index.nbytes == 2 * 4 * n * 32 * 4 + 8 + 4
    assert layer.nbytes == layer.store.nbytes + sum(i.nbytes for i in layer.indices)
    k, _, _ = layer.store.padded()
    assert torch.equal(layer.indices[0].inner.parts["least"][:, -1], k[0, :, 112:123].amin(1))


@torch.no_grad()
def test_a_list_is_kept_while_queries_are_alike(model, padded):
    ids = padded["input_ids"][1:]
    score = HeadVote(4, 16)
    options = {"budget": Count(40), "always": Sink(4) | Window(16), "score": score}
    with sw.attention(model, sw.method("token_select", **options)) as run:
        model.generate(ids, max_new_tokens=4, do_sample=False)
    assert 40 / 163 <= run.density("decode") <= 46 / 160


def shadowkv(rank: int, **options):
    score = Landmarks(chunk=8, outliers=2, local=2, rank=rank)
    return sw.method("shadowkv", score=score, **options)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_a_shadow_of_full_rank_generates_what_the_model_generates(model, padded, beams):
    options = {**padded, "max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    expected = model.generate(**options)
    with sw.attention(model, shadowkv(4096, density=1.0)) as run:
        assert torch.equal(model.generate(**options), expected)
    assert run.density("decode") == 1 and run.held.held[0].registered_name == "shadow"


@torch.no_grad()
def test_a_shadow_is_small_on_the_device_and_lasts_over_turns_and_files(model, padded, tmp_path):
    ids = padded["input_ids"][1:]
    with sw.attention(model, shadowkv(16, budget=Count(48))) as run:
        cache = run.cache()
        model(ids[:, :140], cache=cache)
        cache.save(tmp_path / "cache.safetensors")
        layer = cache.held[0]
        covered, d, heads = 15 * 8, 32, 4  # two of 17 whole chunks are local
        assert layer.offloaded == heads * covered * d * 4
        parts = layer.shadows[0].parts
        assert parts["low"].shape == (covered, 16) and parts["basis"].shape == (16, heads * d)
        exact = 2 * heads * 2 * 8 * d * 4
        landmarks = heads * 15 * (4 * d + 1)
        low = (covered * 16 + 16 * heads * d) * 4
        assert layer.nbytes == low + exact + landmarks + layer.shadows[0].local.nbytes
        step = lambda c: torch.cat([model(ids[:, i : i + 1], cache=c).logits for i in range(140, 145)], 1)  # noqa: E731
        once = step(cache)
        assert layer.moved == 4 * (48 - 16 - 25) * d * 4  # all but outliers and the 25 later tokens comes from the host
        cache.crop(-5)
        torch.testing.assert_close(step(cache), once, atol=1e-4, rtol=0)
        again = run.cache()
        again.load(tmp_path / "cache.safetensors")
        torch.testing.assert_close(step(again), once, atol=1e-4, rtol=0)
        model(ids[:, 145:], cache=again)
        assert again.get_seq_length() == 160
        with pytest.raises(ModelError, match="into its prompt"):
            cache.crop(-100)

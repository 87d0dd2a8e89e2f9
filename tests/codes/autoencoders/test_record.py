"""Recorded activations and splicing: what is read is what passed, a recording goes on, and a spliced model is edited where it was said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.codes.autoencoders import ActivationStream, ce_recovered, splice
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, CheckpointError, ModelError


class Toy(nn.Module):
    """Embedding, a layer with a mapping as output, logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mid, self.out = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)
        self.calls = 0

    def forward(self, input_ids, attention_mask=None):
        self.calls += 1
        return {"logits": self.out(torch.relu(self.mid(self.embed(input_ids))))}


def _batches(n=6):
    g = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 11, (2, 5), generator=g)} for _ in range(n)]


def test_what_is_read_is_what_passed_the_site(tmp_path):
    model, batches = Toy(), _batches()
    batches[0]["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    stream = ActivationStream.record(model, batches, "mid:in", tmp_path, target="mid", shard=2, gradients=True)
    assert stream.tokens == 57
    whole = stream.batch(0, 57, 0)
    want = torch.cat([model.embed(b["input_ids"]).flatten(0, 1) for b in batches])
    keep = torch.ones(60, dtype=torch.bool)
    keep[7:10] = False
    key = lambda x: sorted(map(tuple, x.detach().tolist()))  # noqa: E731
    assert key(whole.x) == key(want[keep])
    assert torch.allclose(whole.target, model.mid(whole.x), atol=1e-6)
    assert whole.gradients.shape == whole.x.shape and bool(whole.gradients.any())
    assert all(p.grad is None for p in model.parameters())


def test_batches_are_a_shuffled_pass_whatever_the_buffer_and_however_often_asked(tmp_path):
    stream = ActivationStream.record(Toy(), _batches(), "mid", tmp_path, shard=1, buffer=2)
    parts = [stream.batch(i, 7, 3).x for i in range(20)]
    once = torch.cat(parts)
    order = ActivationStream(tmp_path, buffer=6).batch(0, 60, 3).x
    key = lambda x: sorted(map(tuple, x.tolist()))  # noqa: E731
    assert key(once[:60]) == key(once[60:120]) == key(order)
    assert not torch.equal(once[:60], once[60:120])
    assert torch.equal(stream.batch(4, 7, 3).x, parts[4]) and torch.equal(
        ActivationStream(tmp_path, 2).batch(11, 7, 3).x, parts[11]
    )


def test_a_recording_goes_on_where_it_ended_and_refuses_others(tmp_path):
    model, batches = Toy(), _batches()
    ActivationStream.record(model, batches, "mid", tmp_path, shard=1)
    first = ActivationStream(tmp_path).batch(0, 60, 0).x
    (tmp_path / "activations-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unfinished"):
        ActivationStream(tmp_path)
    model.calls = 0
    assert torch.equal(ActivationStream.record(model, batches, "mid", tmp_path, shard=1).batch(0, 60, 0).x, first)
    assert model.calls == 1
    with pytest.raises(CheckpointError, match="another model"):
        ActivationStream.record(model, batches, "out", tmp_path, shard=1)
    path = tmp_path / "activations-00002.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="damaged"):
        ActivationStream(tmp_path)
    with pytest.raises(CheckpointError, match="no readable"):
        ActivationStream(tmp_path / "nowhere")
    with pytest.raises(CalibrationError):
        ActivationStream.record(model, [], "mid", tmp_path / "b")
    with pytest.raises(CalibrationError, match="tokenizer"):
        ActivationStream.record(model, ["text"], "mid", tmp_path / "b")
    with pytest.raises(ModelError, match="no module"):
        ActivationStream.record(model, batches, "middle", tmp_path / "c")


def test_texts_are_cut_into_rows(tmp_path):
    class Letters:
        eos_token_id = 10

        def __call__(self, text):
            return {"input_ids": [ord(c) - ord("a") for c in text]}

    stream = ActivationStream.record(Toy(), ["abcabca", "bcd"], "mid", tmp_path, tokenizer=Letters(), length=4, rows=2)
    assert stream.tokens == 12 and stream.labels["hook_name"] == "mid"


class Exact:
    """Codes that hold everything."""

    W_dec = torch.eye(6)

    def encode(self, x):
        return Codes(x, torch.arange(6).expand(len(x), 6), 6)

    def decode(self, codes):
        return codes.dense()


def test_splicing_an_exact_code_changes_nothing_and_an_edit_only_what_it_says():
    model, batch = Toy(), _batches()[0]
    plain = model(**batch)["logits"]
    with splice(model, "mid", Exact()):
        assert torch.allclose(model(**batch)["logits"], plain)
    with splice(model, "embed", Exact(), edit=lambda c: Codes(c.values * 2, c.indices, c.width)):
        twice = model(**batch)["logits"]
    assert torch.allclose(twice, model.out(torch.relu(model.mid(2 * model.embed(batch["input_ids"])))), atol=1e-6)
    assert torch.equal(model(**batch)["logits"], plain)
    sae = sw.train_autoencoder(torch.randn(64, 6), sw.method("topk_sae", k=2), width=12, steps=2, batch=32)
    with splice(model, "mid", sae, keep_error=True):
        assert torch.allclose(model(**batch)["logits"], plain, atol=1e-5)
    with splice(model, "mid", sae):
        model(**batch)["logits"].sum().backward()
    assert sae.W_dec.grad is not None and bool(sae.W_dec.grad.any())


def test_a_transcoder_is_spliced_from_its_source():
    model, batch = Toy(), _batches()[0]

    class Layer(Exact):
        def decode(self, codes):
            return nn.functional.linear(codes.dense(), model.mid.weight, model.mid.bias)

    plain = model(**batch)["logits"]
    with splice(model, "mid", Layer(), source="mid:in"):
        assert torch.allclose(model(**batch)["logits"], plain, atol=1e-6)
    with pytest.raises(ModelError, match="does not come before"), splice(model, "mid:in", Layer(), source="out:in"):
        model(**batch)


def _spliced(model, sae, batch):
    with splice(model, "mid", sae):
        return model(**batch)


def test_loss_recovered_is_one_for_exact_codes_zero_for_none_and_does_not_depend_on_batches():
    class Nothing(Exact):
        def decode(self, codes):
            return 0 * codes.dense()

    model, batches = Toy(), _batches(4)
    assert ce_recovered(model, "mid", Exact(), batches)["recovered"] == pytest.approx(1)
    assert ce_recovered(model, "mid", Nothing(), batches)["recovered"] == pytest.approx(0, abs=1e-9)
    sae = sw.train_autoencoder(torch.randn(64, 6), sw.method("topk_sae", k=2), width=12, steps=2, batch=32)
    whole = {"input_ids": torch.cat([b["input_ids"] for b in batches]).flip(0)}
    one, other = ce_recovered(model, "mid", sae, batches), ce_recovered(model, "mid", sae, [whole])
    assert one == pytest.approx(other, rel=1e-5)
    assert one["kl"] > 1e-3 and ce_recovered(model, "mid", Exact(), batches)["kl"] == pytest.approx(0, abs=1e-6)
    p, q = (o["logits"][:, :-1].flatten(0, 1).log_softmax(1) for o in (model(**whole), _spliced(model, sae, whole)))
    assert one["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean().detach()), rel=1e-4)
    with pytest.raises(CalibrationError):
        ce_recovered(model, "mid", sae, [])

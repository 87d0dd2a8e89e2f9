from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, RecipeError
from sparseworks.core.published import method_from
from sparseworks.evaluate import TopicCorpus
from sparseworks.retrieval.encoders.method import TermMethod
from sparseworks.retrieval.losses import InfoNCE
from sparseworks.retrieval.train import DenseTeacher, train_retriever

CORPUS = TopicCorpus(topics=2, concepts=3, own=2, asked=1, passing=1, stop=2)
TOKENIZER = CORPUS.tokenizer()
PAIRS = CORPUS.pairs(24)
ROWS = [(q, d, PAIRS[i - 1][1]) for i, (q, d) in enumerate(PAIRS)]


def made(tiny, name="splade", seed=0, **changes):
    method = sw.method(name).with_(**changes)
    idf = torch.ones(TOKENIZER.get_vocab_size())
    return method.encoder(tiny.bert(TOKENIZER.get_vocab_size(), seed, hidden=16), TOKENIZER, idf=idf), method


@pytest.mark.parametrize("name", [m.name for m in TermMethod.all()])
def test_every_method_trains_and_round_trips(name, tiny):
    encoder, method = made(tiny, name)
    encoder.expand = lambda text: text
    teacher = DenseTeacher(lambda texts: torch.tensor([[float(len(t)), 1.0] for t in texts]))
    before = [p.clone() for p in encoder.parameters()]
    seen = train_retriever(encoder, method, ROWS, teachers=(teacher,), steps=2, batch_size=4, rate=1e-2)
    assert len(seen.loss) == 2 and any(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    assert method_from(method.to_config()) == method and method.catalog and method.when and method.when_not


def test_slots_may_be_named_in_a_change():
    method = sw.method("splade", query_head="binary", query_importance="idf", document_window=7)
    assert method.query == sw.method("idf_flops").query and method.document.window == 7
    assert method_from(method.to_config()) == method
    with pytest.raises(RecipeError):
        sw.method("splade", query_colour="red")


def test_an_interrupted_run_ends_where_the_whole_one_does(tiny, tmp_path, monkeypatch):
    def trained(folder, stop=None):
        encoder, method = made(tiny, loss=InfoNCE())
        if stop is not None:
            weigh, calls = encoder.open_weights, iter(range(10**6))

            def cut(ids, queries):
                if next(calls) == 2 * stop:
                    raise KeyboardInterrupt
                return weigh(ids, queries)

            monkeypatch.setattr(encoder, "open_weights", cut)
        seen = train_retriever(encoder, method, PAIRS, steps=6, batch_size=8, rate=1e-2, folder=folder, save_every=2)
        return encoder, seen

    whole, seen = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=5)
    again, rest = trained(tmp_path)
    assert rest.resumed == 4 and rest.loss == seen.loss
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    encoder, method = made(tiny, loss=InfoNCE())
    with pytest.raises(CheckpointError, match="another run"):
        train_retriever(encoder, method, PAIRS, steps=7, batch_size=8, folder=tmp_path)
    path = tmp_path / "retriever.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        train_retriever(encoder, method, PAIRS, steps=6, batch_size=8, folder=tmp_path)


def test_a_dense_teacher_embeds_every_text_once():
    asked = []

    def embed(texts):
        asked.extend(texts)
        return torch.ones(len(texts), 2)

    teacher = DenseTeacher(embed)
    assert teacher(["q", "q"], ["d"]).tolist() == [[2.0], [2.0]] and teacher(["q"], ["d", "e"]).shape == (1, 2)
    assert asked == ["q", "d", "e"]


def test_bad_input_is_refused(tiny):
    encoder, method = made(tiny, loss=InfoNCE())
    for pairs in ([], [("q",)], [("q", "d"), ("q", "d", "e")]):
        with pytest.raises(CalibrationError):
            train_retriever(encoder, method, pairs)
    with pytest.raises(BudgetError):
        train_retriever(encoder, method, PAIRS, steps=0)
    with pytest.raises(CalibrationError, match="teacher"):
        train_retriever(encoder, "splade", PAIRS)
    with pytest.raises(RecipeError, match="sides"):
        train_retriever(encoder, sw.method("unicoil"), PAIRS)

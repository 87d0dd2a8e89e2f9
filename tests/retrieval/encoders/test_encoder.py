from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError, NonFiniteError
from sparseworks.evaluate import TopicCorpus
from sparseworks.retrieval.encoders import (
    Binary,
    EchoPooling,
    ExpMlp,
    FirstPooling,
    Idf,
    L2Norm,
    LastPooling,
    LearnedTable,
    LiteralResidual,
    Log1pTwice,
    MaxPooling,
    Mlm,
    Mlp,
    SoftThreshold,
    SumPooling,
    TermEncoder,
    TermSide,
    idf_of,
    rows_of,
)  # fmt: skip

CORPUS = TopicCorpus(topics=2, concepts=4)
TOKENIZER = CORPUS.tokenizer()
WIDTH = TOKENIZER.get_vocab_size()


class Fixed(nn.Module):
    """Hidden states and logits that are a function of the token alone, or of all tokens up to it."""

    def __init__(self, running: bool = False):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=g))
        self.running, self.calls = running, 0

    def forward(self, input_ids, attention_mask, output_hidden_states):
        self.calls += 1
        h = self.table[input_ids]
        h = h.cumsum(1) if self.running else h
        return h[..., :8], h


def encoder(side: TermSide, **options) -> TermEncoder:
    model = options.pop("model", None) or Fixed()
    return TermEncoder(model, TOKENIZER, side, side, hidden=8, **options).eval()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def terms(expected):
    expected[:, :5] = 0  # special tokens are no terms
    return expected


def test_mlm_is_the_maximum_of_logarithms():
    made = encoder(TermSide(Mlm()))
    texts = ["a0 stop1", "b3 a1 stop0 stop2 a2"]
    want = torch.stack([made.model.table[ids(t)].amax(0).relu().log1p() for t in texts])
    assert torch.allclose(made.encode_documents(texts).dense(), terms(want.detach()))


def test_the_other_poolings_and_activations():
    table, text = Fixed().table.detach(), "a0 a1"
    seen = table[ids(text)]
    cases = {
        TermSide(Mlm(), SumPooling()): seen.relu().log1p().sum(0),
        TermSide(Mlm(), FirstPooling()): seen[0].relu().log1p(),
        TermSide(Mlm(), LastPooling()): seen[-1].relu().log1p(),
        TermSide(Mlm(), MaxPooling(special=False)): seen[1:-1].amax(0).relu().log1p(),
        TermSide(Mlm(), activation=Log1pTwice()): seen.amax(0).relu().log1p().log1p(),
        TermSide(Mlm(), activation=SoftThreshold(0.5)): nn.functional.softshrink(seen.amax(0), 0.5),
    }
    for side, want in cases.items():
        assert torch.allclose(encoder(side).encode_queries([text]).dense(), terms(want[None].clone()), atol=1e-6), side
    unit = encoder(TermSide(Mlm(), normalise=L2Norm())).weights([made_ids("a0 a1")], True)
    assert unit.norm() <= 1 + 1e-6 and unit.norm() > 0.8  # special terms leave after the norm


def made_ids(text):
    return encoder(TermSide(Binary())).tokens([text])[0]


def test_echo_pools_the_second_copy_only():
    made = encoder(TermSide(Mlm(), EchoPooling()), model=Fixed(running=True))
    cls, *body, sep = ids("a0 a1 b2")
    running = made.model.table[[cls, *body, *body, sep]].cumsum(0)
    want = running[1 + len(body) : -1].amax(0).relu().log1p()
    assert torch.allclose(made.encode_documents(["a0 a1 b2"]).dense(), terms(want[None].detach()), atol=1e-5)


def test_batches_do_not_change_what_a_text_is():
    made = encoder(TermSide(Mlm(), importance=LiteralResidual()))
    texts = ["a0", "b1 b2 b3 stop0 stop1 stop2", "", "a2 a2"]
    together = made.encode_documents(texts, batch_size=2).dense()
    assert torch.allclose(together, torch.cat([made.encode_documents([t]).dense() for t in texts]), atol=1e-6)


def test_terms_of_the_text_only():
    made = encoder(TermSide(Mlp()))
    found = made.encode_documents(["a0 b1 a0"]).dense()[0]
    assert set(found.nonzero()[:, 0].tolist()) <= {*ids("a0"), *ids("b1")} and (found > 0).any()
    both = encoder(TermSide(Mlp(), SumPooling()))
    both.document_head.load_state_dict(made.document_head.state_dict())
    twice, once = both.encode_documents(["a0 b1 a0", "a0 b1"]).dense()
    assert torch.allclose(twice[ids("a0")[1]], 2 * once[ids("a0")[1]]) and torch.allclose(once, found)
    more = encoder(TermSide(ExpMlp()), expand=lambda t: t + " b3").encode_documents(["a0"])
    assert ids("b3")[1] in more.indices[0].tolist()
    with pytest.raises(ModelError, match="expand"):
        encoder(TermSide(ExpMlp())).encode_documents(["a0"])


def test_an_inference_free_side_is_a_table():
    idf = torch.rand(WIDTH) + 0.5
    model = Fixed()
    made = TermEncoder(model, TOKENIZER, TermSide(Binary(), importance=Idf()), TermSide(Mlm()), idf=idf, hidden=8)
    found = made.encode_queries(["a0 stop1 a0"])
    assert model.calls == 0 and found.nnz == 2
    at = [ids("a0")[1], ids("stop1")[1]]
    assert torch.allclose(found.dense()[0, at], idf[at])
    alone = TermEncoder(
        None, TOKENIZER, TermSide(Binary(), importance=LearnedTable(from_idf=False)), TermSide(Binary())
    )
    assert (
        alone.encode_queries(["a0"]).values.tolist() == [[1.0]] and sum(p.numel() for p in alone.parameters()) == WIDTH
    )


def test_a_literal_residual_adds_on_the_terms_of_the_text():
    plain, made = encoder(TermSide(Mlm())), encoder(TermSide(Mlm(), importance=LiteralResidual()))
    more = made.encode_documents(["a0 b3"]).dense() - plain.encode_documents(["a0 b3"]).dense()
    at = sorted([ids("a0")[1], ids("b3")[1]])
    last = made.model.table[ids("a0 b3")[-1], :8].relu().log1p()
    others = made.document_importance.head(last).detach()
    assert more.nonzero()[:, 1].tolist() == at and torch.allclose(more[0, at], others.max() - others[at], atol=1e-6)


def test_a_window_holds_the_best_terms_and_their_gradients():
    made, all_ = encoder(TermSide(Mlm(), window=5)), encoder(TermSide(Mlm()))
    w = made.weights(made.token_ids(["a0 a1", "b2 stop3"], False), False)
    whole = all_.encode_documents(["a0 a1", "b2 stop3"]).dense()
    assert ((w != 0).sum(1) <= 5).all() and torch.allclose(w[w != 0], whole[w != 0])
    w.sum().backward()
    assert (made.model.table.grad != 0).sum() <= 10
    opened = made.open_weights(made.token_ids(["a0 a1", "b2 stop3"], False), False)
    assert torch.allclose(opened, whole)  # what regularisers see


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_models_of_transformers_and_an_index(name, tiny):
    made = sw.method("splade").encoder(getattr(tiny, name)(WIDTH), TOKENIZER).eval()
    codes = made.encode_documents(["a0 b1", "b2"])
    rows = rows_of(codes)
    assert isinstance(codes, Codes) and codes.width == rows.width == WIDTH and len(rows) == 2


def test_bad_input_is_refused():
    with pytest.raises(ModelError):
        TermEncoder(None, TOKENIZER)
    with pytest.raises(ModelError, match="hidden"):
        TermEncoder(Fixed(), TOKENIZER, TermSide(Mlp()))
    with pytest.raises(BudgetError, match="idf"):
        TermEncoder(Fixed(), TOKENIZER, TermSide(Binary(), importance=Idf()))
    with pytest.raises(CalibrationError):
        TermEncoder(Fixed(), "words")
    with pytest.raises(BudgetError):
        TermSide(Mlm(), window=0)
    made = encoder(TermSide(Mlm()))
    for texts in ("a0", []):
        with pytest.raises(CalibrationError):
            made.encode_documents(texts)
    made.model.table.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        made.encode_documents(["a0"])
    with pytest.raises(CalibrationError):
        idf_of([], 4)


def test_idf_counts_documents():
    idf = idf_of([[1, 1, 2], [1]], 4)
    assert torch.allclose(idf[1:3], torch.log1p(torch.tensor([0.5, 1.5]) / torch.tensor([2.5, 1.5])))
    assert idf[[0, 3]].tolist() == [1, 1]  # never seen

from __future__ import annotations

import pytest

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate import TopicCorpus


def concepts(text: str) -> set[int]:
    return {int(w[1:]) for w in text.split() if w[0] in "ab" and w[1:].isdigit()}


def test_relevant_documents_hold_every_concept_of_the_query_and_the_seed_decides():
    corpus = TopicCorpus(mismatch=0.5)
    made = corpus.collection(100, 30, seed=3)
    assert made == corpus.collection(100, 30, seed=3) != corpus.collection(100, 30, seed=4)
    for query, judged in made.qrels.items():
        asked = concepts(made.queries[query])
        assert len(asked) == corpus.asked and judged
        assert all(asked <= concepts(made.documents[d]) for d in judged)


@pytest.mark.parametrize(("mismatch", "shared"), [(0.0, 2), (1.0, 0)])
def test_mismatch_is_the_share_of_synonyms(mismatch, shared):
    corpus = TopicCorpus(mismatch=mismatch)
    for query, document in corpus.pairs(20):
        common = {w for w in query.split() if w[0] in "ab"} & set(document.split())
        assert len(common) == shared


def test_one_token_a_word_and_names_that_training_never_saw():
    corpus = TopicCorpus(names=60)
    tokenizer = corpus.tokenizer()
    named = corpus.by_name(20)
    assert tokenizer.get_vocab_size() == 5 + len(corpus.words) == 5 + 160 + 12 + 60
    assert tokenizer.encode("a0 name3").tokens == ["[CLS]", "a0", "name3", "[SEP]"]
    seen = {w for _, d in corpus.pairs(40) for w in d.split()}
    assert all(q not in seen and named.documents[f"d{i}"].startswith(q) for i, q in enumerate(named.queries.values()))
    with pytest.raises(CalibrationError):
        corpus.by_name(61)
    with pytest.raises(CalibrationError):
        TopicCorpus(asked=5, own=4)

"""A synthetic collection whose vocabulary mismatch is known: topics, pairs of synonyms, stop-words by Zipf's law, and names that occur once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.collection import Collection

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")


@dataclass(frozen=True)
class TopicCorpus:
    """Topics of `concepts` concepts each; a concept has two forms, of which a text uses one.

    A document speaks of some concepts of its topic, mentions some of other topics in passing, and is filled with stop-words; a
    query asks for some of the document's own concepts, each with probability `mismatch` in the form that the document does not
    use. Relevant is every document of which all of these are its own.

    Attributes:
        topics, concepts: number of topics, and of concepts in each.
        own, passing, asked: concepts of a document's topic in it, of other topics in it, and in a query.
        stop: stop-words in a document (Zipf, out of `stop_words`); a query has two.
        stop_words: how many different ones there are.
        mismatch: as above.
        names: how many names exist; a document carries one of its own if there are any.

    Raises:
        CalibrationError: more concepts asked for than a document has, or than a topic.
    """

    topics: int = 10
    concepts: int = 8
    own: int = 4
    passing: int = 2
    asked: int = 2
    stop: int = 6
    stop_words: int = 12
    mismatch: float = 0.5
    names: int = 0

    def __post_init__(self):
        if not 0 < self.asked <= self.own <= self.concepts or self.topics < 1 + (self.passing > 0):
            raise CalibrationError(
                f"Need 0 < asked <= own <= concepts, and two topics where any are in passing: {self}."
            )

    @property
    def words(self) -> list[str]:
        """All words, without special tokens: forms of concepts, stop-words, names."""
        forms = [f"{form}{i}" for i in range(self.topics * self.concepts) for form in ("a", "b")]
        return forms + [f"stop{i}" for i in range(self.stop_words)] + [f"name{i}" for i in range(self.names)]

    def tokenizer(self) -> Any:
        """One token a word; a text stands between [CLS] and [SEP]."""
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

        vocabulary = {w: i for i, w in enumerate((*SPECIAL, *self.words))}
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        made.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])  # type: ignore[arg-type]
        made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
        return made

    def pairs(self, count: int, seed: int = 0) -> list[tuple[str, str]]:
        """(query, document) for training, of documents that no collection holds."""
        rng = random.Random(f"pairs {seed}")
        return [(self._query(rng, made), made.text) for made in (self._document(rng, i) for i in range(count))]

    def collection(self, documents: int = 200, queries: int = 60, seed: int = 0) -> Collection:
        """Documents, queries and judgements."""
        rng = random.Random(f"collection {seed}")
        made = [self._document(rng, i) for i in range(documents)]
        asked, judged = {}, {}
        for q in range(queries):
            target = rng.choice(made)
            concepts = self._asked(rng, target)
            asked[f"q{q}"] = self._words(rng, target, concepts)
            judged[f"q{q}"] = {f"d{i}": 1 for i, d in enumerate(made) if set(concepts) <= set(d.own)}
        return Collection({f"d{i}": d.text for i, d in enumerate(made)}, asked, judged)

    def by_name(self, documents: int = 200, seed: int = 0) -> Collection:
        """As `collection`, but every query is the name of one document.

        Raises:
            CalibrationError: fewer names than documents.
        """
        if self.names < documents:
            raise CalibrationError(f"{documents} documents need as many names, there are {self.names}.")
        rng = random.Random(f"collection {seed}")
        made = [self._document(rng, i) for i in range(documents)]
        last = self.names - documents  # the last names: those that training, which begins at the first, may never see
        texts = {f"d{i}": d.text.replace(f"name{i} ", f"name{last + i} ") for i, d in enumerate(made)}
        return Collection(
            texts,
            {f"q{i}": f"name{last + i}" for i in range(documents)},
            {f"q{i}": {f"d{i}": 1} for i in range(documents)},
        )

    def _document(self, rng: random.Random, number: int) -> _Document:
        topic = rng.randrange(self.topics)
        own = rng.sample(range(topic * self.concepts, (topic + 1) * self.concepts), self.own)
        others = [c for c in range(self.topics * self.concepts) if c // self.concepts != topic]
        forms = {c: rng.choice("ab") for c in (*own, *rng.sample(others, self.passing))}
        words = [f"{form}{c}" for c, form in forms.items()] + self._stop(rng, self.stop)
        rng.shuffle(words)
        name = [f"name{number % self.names}"] if self.names else []
        return _Document(" ".join(name + words), tuple(own), forms)

    def _asked(self, rng: random.Random, document: _Document) -> list[int]:
        return rng.sample(document.own, self.asked)

    def _query(self, rng: random.Random, document: _Document) -> str:
        return self._words(rng, document, self._asked(rng, document))

    def _words(self, rng: random.Random, document: _Document, concepts: list[int]) -> str:
        other = {"a": "b", "b": "a"}
        words = [
            f"{other[document.forms[c]] if rng.random() < self.mismatch else document.forms[c]}{c}" for c in concepts
        ] + self._stop(rng, 2)
        rng.shuffle(words)
        return " ".join(words)

    def _stop(self, rng: random.Random, count: int) -> list[str]:
        weights = [1 / (i + 1) for i in range(self.stop_words)]
        return [f"stop{i}" for i in rng.choices(range(self.stop_words), weights, k=count)]


@dataclass(frozen=True)
class _Document:
    text: str
    own: tuple[int, ...]
    forms: dict[int, str]

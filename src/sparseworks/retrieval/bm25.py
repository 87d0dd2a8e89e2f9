"""BM25 as sparse vectors: a document's term weights are computed once, a query counts its terms, and their dot product is the score."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError, CheckpointError, RecipeError
from sparseworks.exec.search import Rows

WORDS = re.compile(r"(?u)\b\w\w+\b")
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ]
)  # Lucene's English set

_Idf = Callable[[int, int], float]
_Share = Callable[[float, float, float, float], float]

# Variant -> (idf of (documents, documents with the term), saturation of (tf, k1, length norm, delta)). Kamphuis et al., 2020.
VARIANTS: dict[str, tuple[_Idf, _Share]] = {
    "lucene": (lambda n, df: math.log(1 + (n - df + 0.5) / (df + 0.5)), lambda tf, k, s, d: tf / (k * s + tf)),
    "robertson": (lambda n, df: math.log(max((n - df + 0.5) / (df + 0.5), 1)), lambda tf, k, s, d: tf / (k * s + tf)),
    "atire": (lambda n, df: math.log(n / df), lambda tf, k, s, d: tf * (k + 1) / (k * s + tf)),
    "bm25l": (
        lambda n, df: math.log((n + 1) / (df + 0.5)),
        lambda tf, k, s, d: (k + 1) * (tf / s + d) / (k + tf / s + d),
    ),
    "bm25+": (lambda n, df: math.log((n + 1) / df), lambda tf, k, s, d: (k + 1) * tf / (k * s + tf) + d),
}


@dataclass
class BM25:
    """w(t, d) = idf(t) saturation(tf, length of d), shifted so that a term that is absent has weight 0.

    lucene: idf = ln(1 + (N - df + 1/2) / (df + 1/2)), saturation = tf / (k1 (1 - b + b len / mean len) + tf).
    Statistics and vocabulary are those of the texts it was fitted to; other terms are left out.

    Attributes:
        k1, b: saturation and length normalisation.
        method: "lucene", "robertson", "atire", "bm25l" or "bm25+".
        delta: of the last two.
        stop_words: left out: "english" (Lucene's 33), words, or None.
        stem: with this Snowball stemmer ("english", or "porter", which Lucene's analyser has; needs PyStemmer); None = not.

    Raises:
        RecipeError: an unknown method or stemmer, or numbers out of range.

    Source: Robertson and Zaragoza, 2009; eager sparse scoring: Lu, 2024 (arXiv 2407.03618).
    """

    k1: float = 1.5
    b: float = 0.75
    method: str = "lucene"
    delta: float = 0.5
    stop_words: Iterable[str] | str | None = "english"
    stem: str | None = None

    def __post_init__(self):
        if self.method not in VARIANTS:
            raise RecipeError(f"There is no BM25 variant {self.method!r}; known: {', '.join(VARIANTS)}.")
        if not self.k1 > 0 or not 0 <= self.b <= 1 or self.delta < 0:
            raise RecipeError(f"BM25 needs k1 > 0, b in [0, 1] and delta >= 0, got {self.k1}, {self.b}, {self.delta}.")
        if isinstance(self.stop_words, str):
            if self.stop_words != "english":
                raise RecipeError(f'Stop words are "english", a list of words, or None, not {self.stop_words!r}.')
            self.stop_words = STOP_WORDS
        self.stop_words = None if self.stop_words is None else frozenset(self.stop_words)
        self._stemmer = None if self.stem is None else _stemmer(self.stem)
        self.vocabulary: dict[str, int] = {}
        self.idf: list[float] = []
        self.mean_length = 0.0

    def words(self, text: str) -> list[str]:
        """Lower-case words of two letters or more, without stop words, stemmed if asked for."""
        found = [w for w in WORDS.findall(text.lower()) if not self.stop_words or w not in self.stop_words]
        return self._stemmer(found) if self._stemmer else found

    def fit(self, texts: Sequence[str]) -> BM25:
        """Vocabulary, document frequencies and mean length of these texts.

        Raises:
            CalibrationError: no texts, or no words in them.
        """
        frequency: Counter[str] = Counter()
        length = 0
        for text in texts:
            found = self.words(text)
            frequency.update(list(dict.fromkeys(found)))
            length += len(found)
        if not frequency:
            raise CalibrationError("BM25 needs texts with words in them.")
        self.vocabulary = {word: i for i, word in enumerate(frequency)}
        idf = VARIANTS[self.method][0]
        self.idf = [idf(len(texts), frequency[word]) for word in self.vocabulary]
        self.mean_length = length / len(texts)
        return self

    def documents(self, texts: Sequence[str]) -> Rows:
        """Weights of the terms of every text (texts, vocabulary).

        Raises:
            CalibrationError: not fitted.
        """
        return self._rows(texts, self._weights)

    def queries(self, texts: Sequence[str]) -> Rows:
        """How often every known term occurs in every query.

        Raises:
            CalibrationError: not fitted.
        """
        return self._rows(texts, lambda counts, length: {t: float(n) for t, n in counts.items()})

    def absent(self, texts: Sequence[str]) -> Float[Tensor, " queries"]:
        """What a document without any of a query's terms scores: add it to have the published value of bm25l and bm25+."""
        return torch.tensor(
            [sum(n * self._nothing(t) for t, n in self._counts(self.words(text)).items()) for text in texts]
        )

    def save(self, path: Path | str) -> None:
        """Write options and statistics as JSON; a reader never sees half a file.

        Raises:
            CheckpointError: it cannot be written.
        """
        target = Path(path)
        options = {k: v for k, v in asdict(self).items() if k != "stop_words"}
        stop = None if self.stop_words is None else sorted(self.stop_words)
        data = {"format": 1, **options, "stop_words": stop, "mean_length": self.mean_length}
        data |= {"words": list(self.vocabulary), "idf": self.idf}
        temporary = target.with_name(target.name + ".tmp")
        try:
            temporary.write_text(json.dumps(data), encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"Cannot write {target}: {error}.") from error

    @classmethod
    def load(cls, path: Path | str) -> BM25:
        """Inverse of `save`.

        Raises:
            CheckpointError: not such a file, or damaged.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            words, idf, mean = data.pop("words"), data.pop("idf"), data.pop("mean_length")
            if data.pop("format") != 1 or len(words) != len(idf):
                raise ValueError("another format")
            made = cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} holds no BM25 statistics: {error}.") from error
        made.vocabulary, made.idf, made.mean_length = {w: i for i, w in enumerate(words)}, idf, mean
        return made

    def _counts(self, words: list[str]) -> Counter[int]:
        return Counter(self.vocabulary[w] for w in words if w in self.vocabulary)

    def _weights(self, counts: Counter[int], length: int) -> dict[int, float]:
        scale = 1 - self.b + self.b * length / self.mean_length
        share = VARIANTS[self.method][1]
        return {t: self.idf[t] * share(tf, self.k1, scale, self.delta) - self._nothing(t) for t, tf in counts.items()}

    def _nothing(self, term: int) -> float:
        return self.idf[term] * VARIANTS[self.method][1](0, self.k1, 1.0, self.delta)

    def _rows(self, texts: Sequence[str], weigh: Callable[[Counter[int], int], dict[int, float]]) -> Rows:
        if not self.vocabulary:
            raise CalibrationError("Fit BM25 to texts first: `BM25().fit(texts)`.")
        ptr, terms, values = [0], [], []
        for text in texts:
            words = self.words(text)
            for term, value in sorted(weigh(self._counts(words), len(words)).items()):
                if value != 0:
                    terms.append(term)
                    values.append(value)
            ptr.append(len(terms))
        columns = torch.tensor(terms, dtype=torch.int32), torch.tensor(values, dtype=torch.float32)
        return Rows(torch.tensor(ptr), *columns, len(self.vocabulary))


def _stemmer(language: str) -> Callable[[list[str]], list[str]]:
    try:
        from Stemmer import Stemmer, algorithms  # type: ignore[import-not-found]
    except ImportError:
        raise RecipeError(
            "Stemming needs PyStemmer: `pip install sparseworks[retrieval]`, or leave `stem` out."
        ) from None
    if language not in algorithms():
        raise RecipeError(f"There is no stemmer {language!r}; known: {', '.join(algorithms())}.")
    return Stemmer(language).stemWords

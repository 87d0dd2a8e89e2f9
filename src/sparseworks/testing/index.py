"""What every method of indexes must do: `check_index`, in memory and in a folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from sparseworks.core.recipe import Recipe
from sparseworks.exec.search import Ranked
from sparseworks.exec.search.rows import dense
from sparseworks.retrieval.index import Index
from sparseworks.retrieval.method import IndexMethod
from sparseworks.retrieval.vectors import SparseVectors
from sparseworks.testing.examples import require

_WIDE = 70_000


def check_index(method: IndexMethod | str, *, documents: int = 240) -> None:
    """Raise AssertionError unless `method` answers as brute force does, ties to the lower id, whatever happened to the index.

    Scores are those of the documents found; an exact method finds the best, of an approximate one every answer is true and in
    order. Unknown terms, empty queries, more asked than there are, masks, more than 65,536 terms, and threads change nothing that
    they should not. In a folder: adding in parts, deleting, merging and opening again are as building anew.
    """
    method = IndexMethod.of(method)
    for width in (50, _WIDE):
        vectors, queries = example_vectors(documents, width, 0), example_vectors(12, width, 1)
        _check_answers(method, vectors, queries)
    with TemporaryDirectory() as folder:
        _check_folder(method, Path(folder), documents)
    recipe = Recipe.of(method, kind=IndexMethod)
    require(Recipe.from_yaml(recipe.to_yaml()) == recipe, f"{method.name}: its recipe does not bring it back.")


def _check_answers(method: IndexMethod, vectors: SparseVectors, queries: SparseVectors) -> None:
    built, name = method.build(vectors), method.name
    truth = _products(queries, vectors)
    for k in (1, 7, len(vectors)):
        _check_ranked(method, built.search(queries, k), truth, k)
    mask = torch.arange(len(vectors)) % 3 == 0
    _check_ranked(method, built.search(queries, 7, mask), truth.where(mask, -torch.inf), 7)
    one, two = built.search(queries, 7, threads=1), built.search(queries, 7, threads=2)
    require(
        torch.equal(one.ids, two.ids) and torch.equal(one.scores, two.scores), f"{name}: threads change what is found."
    )
    empty = SparseVectors.of_terms([{}, {queries.width - 1: 1.0}], queries.width)
    scores = built.search(empty, 3).scores
    require(not bool((scores > 0).any()), f"{name}: an empty query or a term that no document has finds documents.")


def _check_ranked(method: IndexMethod, ranked: Ranked, truth: Tensor, k: int) -> None:
    name, there = method.name, ranked.scores > 0
    at = ranked.ids.clamp(min=0)
    require(torch.equal(truth.gather(1, at)[there], ranked.scores[there]), f"{name}: a score is not <query, document>.")
    keys = ranked.scores.double() * (truth.shape[1] + 1) - ranked.ids
    keys = keys.where(there, -torch.inf)
    require(bool((keys[:, 1:] <= keys[:, :-1]).all()), f"{name}: not best first, or ties not to the lower id.")
    require(all(len(set(r)) == len(r) for r in _lists(ranked.ids, there)), f"{name}: a document is found twice.")
    if method.search.exact:
        order = truth.argsort(dim=1, descending=True, stable=True)[:, :k]
        best = truth.gather(1, order)
        require(
            torch.equal(torch.where(best > 0, order, -1), torch.where(there, ranked.ids, -1)),
            f"{name}: not what brute force finds at k={k}.",
        )


def _check_folder(method: IndexMethod, folder: Path, documents: int) -> None:
    vectors, queries = example_vectors(documents, _WIDE, 2), example_vectors(12, _WIDE, 3)
    ids = [f"document {i}" for i in range(documents)]
    parts = Index.create(folder / "parts", _WIDE)
    for begin in range(0, documents, 61):
        at = slice(begin, begin + 61)
        parts.add(ids[at], vectors.take(at), [{"third": i % 3} for i in range(documents)][at])
    gone = ids[5::7]
    require(parts.delete([*gone, "unknown"]) == len(gone), f"{method.name}: deleting does not count what was there.")
    kept = torch.tensor([i for i in range(documents) if ids[i] not in set(gone)])
    anew = Index.create(folder / "anew", _WIDE)
    anew.add([ids[int(i)] for i in kept], vectors.take(kept))
    want = anew.search(queries, 9)
    _same(parts.search(queries, 9), want, f"{method.name}: adding in parts and deleting is not as building anew")
    held = parts.snapshot
    for index in (parts, anew):
        index.merge(methods=[method])
    _same(parts.search(queries, 9), want, f"{method.name}: merging changes what is found")
    _same(held.search(queries, 9), want, f"{method.name}: merging disturbs a reader")
    want = anew.search(queries, 9, method=method)
    _same(
        parts.search(queries, 9, method=method), want, f"{method.name}: it differs after adding, deleting and merging"
    )
    again = Index.open(folder / "parts")
    _same(again.search(queries, 9, method=method), want, f"{method.name}: opening again changes what is found")
    some = again.search(queries, 9, filter={"third": 1}, method=method)
    require(
        all(int(i.split()[1]) % 3 == 1 for row in some.ids for i in row),
        f"{method.name}: a filter lets others through.",
    )


def _same(found: object, want: object, what: str) -> None:
    require(
        found.ids == want.ids and torch.equal(found.scores, want.scores),  # type: ignore[attr-defined]
        f"{what}.",
    )


def example_vectors(rows: int, width: int, seed: int) -> SparseVectors:
    """Small whole numbers at up to 40 terms spread over the width: sums are exact in any order, and ties common."""
    draw = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, 40, generator=draw) < 0.25
    values = torch.randint(1, 5, (rows, 40), generator=draw)[kept].float()
    terms = (torch.arange(40) * (width // 40)).expand(rows, 40)[kept]
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
    return SparseVectors(ptr, terms, values, width)  # pyright: ignore[reportCallIssue]


def _products(queries: SparseVectors, vectors: SparseVectors) -> Tensor:
    return dense(queries, 0, len(queries)) @ dense(vectors, 0, len(vectors)).T


def _lists(ids: Tensor, there: Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, there, strict=True)]


def topic_mixtures(
    rows: int, *, seed: int, terms: int = 1500, topics: int = 40, entries: int = 120, background: float = 1.0
) -> SparseVectors:
    """Vectors like learned sparse ones: log-normal weights at terms of one or two topics and, in part, at terms of any.

    Topics are the same for every seed: documents and queries are drawn with different ones.
    """
    known, draw = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    vocabulary = torch.stack([torch.randperm(terms, generator=known)[: terms // 12] for _ in range(topics)])
    strength = torch.exp(1.2 * torch.randn(vocabulary.shape, generator=known))
    first, second = torch.randint(0, topics, (2, rows), generator=draw)
    blend = 0.5 + 0.5 * torch.rand(rows, 1, generator=draw)
    weight = torch.full((rows, terms), background * float(strength.mean()) * topics / terms)
    weight.scatter_add_(1, vocabulary[first], blend * strength[first])
    weight.scatter_add_(1, vocabulary[second], (1 - blend) * strength[second])
    drawn = weight.multinomial(entries, generator=draw).sort(dim=1).values
    values = weight.gather(1, drawn).sqrt() * torch.exp(0.4 * torch.randn(drawn.shape, generator=draw))
    ptr = torch.arange(0, rows * entries + 1, entries)
    return SparseVectors(ptr, drawn.flatten(), values.flatten(), terms)  # pyright: ignore[reportCallIssue]

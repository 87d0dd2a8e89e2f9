"""Token tasks whose answer is known: passkey, associative recall and majority, made on the spot from one small vocabulary.

A row is a context followed by questions; all rows of a batch share the layout, so that a batch can be cut at the same places.

Sources: passkey, Mohtashami and Jaggi, 2023, arXiv 2305.16300; recall (MQAR), Arora et al., 2023, arXiv 2312.04927.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import BudgetError

BOS, ASK, NEEDLE, MAJORITY = 0, 1, 2, 3
"""Begin; question about a key; announces the passkey, in the context and in the question; question about the marks."""
DECOYS = range(4, 12)
MARKS = range(12, 16)
KEYS = range(16, 48)
VALUES = range(48, 80)
FILLER = range(80, 96)
VOCABULARY = 96
CODE = 4
"""Tokens of a passkey."""


@dataclass(frozen=True)
class Question:
    """Columns [start, answer) hold the question, [answer, stop) its answer."""

    start: int
    answer: int
    stop: int


@dataclass(frozen=True)
class Examples:
    """Rows of one layout: a context [0, questions[0].start), then questions with their answers.

    Attributes:
        ids: tokens.
        questions: where each question and its answer lie; the same in every row.
        evidence: columns of the context that hold what each question asks for.
    """

    ids: Int[Tensor, "rows length"]
    questions: tuple[Question, ...]
    evidence: Int[Tensor, "rows questions tokens"]

    @property
    def context(self) -> int:
        """Tokens before the first question."""
        return self.questions[0].start

    def answers(self, turn: int) -> Int[Tensor, "rows tokens"]:
        """What is to be said in answer to one question."""
        q = self.questions[turn]
        return self.ids[:, q.answer : q.stop]

    def targets(self) -> Int[Tensor, "rows length"]:
        """The answer tokens where they stand and -100 elsewhere: labels of a causal language model."""
        out = torch.full_like(self.ids, -100)
        for q in self.questions:
            out[:, q.answer : q.stop] = self.ids[:, q.answer : q.stop]
        return out


def passkey(rows: int, length: int = 512, *, depth: float | None = None, decoys: int = 0, seed: int = 0) -> Examples:
    """A code of four tokens somewhere in filler, asked for at the end.

    Context: filler with one span `NEEDLE c1 c2 c3 c4`, question `NEEDLE`, answer `c1 c2 c3 c4`. All tokens of codes differ.

    Args:
        rows: examples.
        length: tokens of a row, question and answer included.
        depth: place of the needle as a share of the context (0 first, 1 last); default: uniform, another for every row.
        decoys: spans of the same form under other markers, at random places.
        seed: of everything drawn.

    Raises:
        BudgetError: the row is too short, more than 7 decoys, or a depth outside [0, 1].
    """
    if not 0 <= decoys < len(VALUES) // CODE:
        raise BudgetError(f"A passkey has 0 to {len(VALUES) // CODE - 1} decoys, got {decoys}.")
    g = torch.Generator().manual_seed(seed)
    spans, size = decoys + 1, CODE + 1
    context = length - size
    _fits(context, 1 + spans * size, length)
    ids = _filler(rows, length, g)
    codes = _distinct(rows, spans * CODE, VALUES, g).view(rows, spans, CODE)
    markers = torch.cat([torch.full((rows, 1), NEEDLE), _distinct(rows, decoys, DECOYS, g)], dim=1)
    starts = _places(rows, spans, size, context, g) if depth is None else _around(depth, rows, decoys, size, context, g)
    at = starts.unsqueeze(-1) + torch.arange(size)
    _put(ids, at.flatten(1), torch.cat([markers.unsqueeze(-1), codes], dim=-1).flatten(1))
    ids[:, context], ids[:, context + 1 :] = NEEDLE, codes[:, 0]
    return Examples(ids, (Question(context, context + 1, length),), at[:, :1])


def mqar(
    rows: int, length: int = 512, *, pairs: int = 16, turns: int = 4, gathered: bool = False, seed: int = 0
) -> Examples:
    """Pairs of a key and a value in filler, then questions about some of the keys, one after the other.

    Context: filler with spans `k v`, keys all different; each question `ASK k`, answer `v`; no key is asked for twice, so every
    turn needs the context again.

    Args:
        rows: examples.
        length: tokens of a row, questions included.
        pairs: pairs in the context, at most 32.
        turns: questions, at most `pairs`.
        gathered: the pairs stand together at the beginning instead of being scattered.
        seed: of everything drawn.

    Raises:
        BudgetError: too many pairs or turns, or too short a row.
    """
    if not 1 <= turns <= pairs <= len(KEYS):
        raise BudgetError(f"Need 1 <= turns <= pairs <= {len(KEYS)}, got {turns} turns and {pairs} pairs.")
    g = torch.Generator().manual_seed(seed)
    context = length - 3 * turns
    _fits(context, 1 + 2 * pairs, length)
    ids = _filler(rows, length, g)
    keys, values = _distinct(rows, pairs, KEYS, g), _drawn(rows, pairs, VALUES, g)
    starts = torch.arange(1, 1 + 2 * pairs, 2).expand(rows, -1) if gathered else _places(rows, pairs, 2, context, g)
    at = starts.unsqueeze(-1) + torch.arange(2)
    _put(ids, at.flatten(1), torch.stack([keys, values], dim=-1).flatten(1))
    asked = torch.rand(rows, pairs, generator=g).argsort(dim=1)[:, :turns]
    ids[:, context::3] = ASK
    ids[:, context + 1 :: 3] = keys.gather(1, asked)
    ids[:, context + 2 :: 3] = values.gather(1, asked)
    questions = tuple(Question(s, s + 2, s + 3) for s in range(context, length, 3))
    return Examples(ids, questions, at.gather(1, asked.unsqueeze(-1).expand(-1, -1, 2)))


def majority(rows: int, length: int = 512, *, marks: int = 40, lead: float = 0.2, seed: int = 0) -> Examples:
    """Marks of four kinds scattered in filler; the answer is the most frequent kind, which no few tokens tell.

    The winner has the share 1/4 + 3/4 lead of the marks, the others 1/4 - 1/4 lead each (rounded to the winner's favour).

    Args:
        rows: examples.
        length: tokens of a row, question and answer included.
        marks: marks in the context.
        lead: distance of the winner from the others, as a share of the marks.
        seed: of everything drawn.

    Raises:
        BudgetError: the marks do not fit, or the lead leaves no winner.
    """
    kinds = len(MARKS)
    other = int(marks * (1 - lead) / kinds)
    if not 0 < lead <= 1 or marks - (kinds - 1) * other <= other:
        raise BudgetError(f"A lead of {lead} among {marks} marks leaves no winner; it lies in (0, 1].")
    g = torch.Generator().manual_seed(seed)
    context = length - 2
    _fits(context, 1 + marks, length)
    ids = _filler(rows, length, g)
    winner = _drawn(rows, 1, range(kinds), g)
    kind = (torch.arange(marks) // max(other, 1)).clamp(max=kinds - 1) if other else torch.full((marks,), kinds - 1)
    kind = (kind + winner + 1) % kinds  # the last kind has the rest of the marks
    at = 1 + torch.rand(rows, context - 1, generator=g).argsort(dim=1)[:, :marks]
    _put(ids, at, kind + MARKS.start)
    ids[:, context], ids[:, context + 1] = MAJORITY, winner.flatten() + MARKS.start
    return Examples(ids, (Question(context, context + 1, length),), at.sort(dim=1).values.unsqueeze(1))


def distract(examples: Examples, spans: int, size: int, seed: int = 0) -> tuple[Examples, Int[Tensor, "rows length"]]:
    """Write `spans` stretches of foreign pairs over filler, away from the evidence of every question.

    A stretch is `size` tokens that repeat pairs of a decoy marker and a value: prominent, regular, and never asked for.

    Returns:
        the examples, and a map that is 1 where a distracting token stands.

    Raises:
        BudgetError: no row has room for them within 200 tries.
    """
    g = torch.Generator().manual_seed(seed)
    ids, marks = examples.ids.clone(), torch.zeros_like(examples.ids)
    taken = torch.zeros_like(ids, dtype=torch.bool)
    taken[:, 0] = True
    taken |= ids < FILLER.start
    for row in range(len(ids)):
        for _ in range(spans):
            start = _free(taken[row, : examples.context], size, g)
            pair = torch.stack([_drawn(1, 1, DECOYS, g), _drawn(1, 1, VALUES, g)]).flatten()
            ids[row, start : start + size] = pair.repeat(-(-size // 2))[:size]
            marks[row, start : start + size] = 1
            taken[row, start : start + size] = True
    return Examples(ids, examples.questions, examples.evidence), marks


def _free(taken: Tensor, size: int, g: torch.Generator) -> int:
    for _ in range(200):
        start = int(torch.randint(1, max(len(taken) - size, 2), (1,), generator=g))
        if start + size <= len(taken) and not taken[start : start + size].any():
            return start
    raise BudgetError(f"No free stretch of {size} tokens among {len(taken)}; take fewer or shorter distractors.")


def _fits(context: int, needed: int, length: int) -> None:
    if context < needed:
        raise BudgetError(f"A row of {length} tokens leaves a context of {context}; {needed} are needed.")


def _filler(rows: int, length: int, g: torch.Generator) -> Tensor:
    ids = _drawn(rows, length, FILLER, g)
    ids[:, 0] = BOS
    return ids


def _drawn(rows: int, count: int, among: Sequence[int], g: torch.Generator) -> Tensor:
    return torch.randint(among[0], among[-1] + 1, (rows, count), generator=g)


def _distinct(rows: int, count: int, among: Sequence[int], g: torch.Generator) -> Tensor:
    return among[0] + torch.rand(rows, len(among), generator=g).argsort(dim=1)[:, :count]


def _places(rows: int, spans: int, size: int, context: int, g: torch.Generator) -> Tensor:
    """Starts of disjoint spans in columns 1 .. context, in random order: drawn with the spans shrunk to a point each."""
    room = context - 1 - spans * (size - 1)
    points = torch.rand(rows, room, generator=g).argsort(dim=1)[:, :spans].sort(dim=1).values
    starts = 1 + points + (size - 1) * torch.arange(spans)
    return starts.gather(1, torch.rand(rows, spans, generator=g).argsort(dim=1))


def _around(depth: float, rows: int, others: int, size: int, context: int, g: torch.Generator) -> Tensor:
    """Starts of one span at a given depth and of others around it: drawn without it, then moved up to make room."""
    if not 0 <= depth <= 1:
        raise BudgetError(f"A depth lies in [0, 1], got {depth}.")
    at = torch.full((rows, 1), 1 + round(depth * (context - 1 - size)))
    starts = _places(rows, others, size, context - size, g)
    cut = (starts < at) & (at < starts + size)
    behind = torch.where(cut, starts + size, 0).sum(dim=1, keepdim=True)
    at = torch.where(behind > 0, behind, at)  # it never cuts another span, but stands behind it
    return torch.cat([at, torch.where(starts >= at, starts + size, starts)], dim=1)


def _put(ids: Tensor, at: Tensor, what: Tensor) -> None:
    ids.scatter_(1, at, what)

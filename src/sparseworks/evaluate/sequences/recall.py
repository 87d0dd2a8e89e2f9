"""How many questions a causal language model answers: at once, or turn by turn with a cache that may forget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.perplexity import context_length
from sparseworks.evaluate.sequences.tokens import VOCABULARY, Examples, majority, mqar, passkey
from sparseworks.evaluate.task import Result, Task, device_of
from sparseworks.stream.modes import evaluating
from sparseworks.stream.progress import bar


class Recall(Task):
    """Exact match: the share of questions of which every answer token is the most probable one, the answer so far given.

    For a deterministic model that is the accuracy of greedy decoding. One pass over whole rows: what is measured is prefill
    attention. Caches are measured by `turn_by_turn`.

    Args:
        examples: rows of one layout.
        batch: rows at a time.
    """

    name = "recall"
    metric = "exact match"
    higher_is_better = True

    def __init__(self, examples: Examples, *, batch: int = 16):
        self.examples, self.batch = examples, batch

    def __call__(self, model: nn.Module, progress: bool = False) -> Result:
        """`details` holds the share of every turn and the number of rows.

        Raises:
            CalibrationError: the model has another vocabulary.
        """
        started = time.perf_counter()
        with evaluating(_fitting(model)):
            parts = [
                _right(_logits(model, ids)[:, :-1].argmax(-1), ids[:, 1:].to(device_of(model)), self.examples).cpu()
                for ids in bar(self.examples.ids.split(self.batch), self.name, progress)
            ]
        return _result(torch.cat(parts), time.perf_counter() - started)

    @classmethod
    def build(
        cls, model: nn.Module, tokenizer: Any = None, data: Path | str | None = None, limit: int | None = None
    ) -> Recall:
        """`mqar` at the model's context length, up to 512 tokens; tokenizer and data are not used."""
        del tokenizer, data
        return cls(mqar(64 if limit is None else limit, min(context_length(model), 512)))


def suite(length: int = 512, rows: int = 32, seed: int = 0) -> dict[str, Recall]:
    """One needle, four of 16 pairs, and the majority among 40 marks: from what one token tells to what all tell together."""
    return {
        "passkey": Recall(passkey(rows, length, decoys=2, seed=seed)),
        "mqar": Recall(mqar(rows, length, pairs=16, turns=4, seed=seed)),
        "majority": Recall(majority(rows, length, marks=40, seed=seed)),
    }


def worst(results: Mapping[str, Result | float]) -> tuple[str, float]:
    """The task with the lowest figure, and the figure: what the mean over tasks hides.

    Raises:
        CalibrationError: no results.
    """
    if not results:
        raise CalibrationError("There are no results to take the worst of.")
    values = {name: r.value if isinstance(r, Result) else r for name, r in results.items()}
    name = min(values, key=values.__getitem__)
    return name, values[name]


def turn_by_turn(
    model: nn.Module, examples: Examples, make_cache: Callable[[], Any] | None = None, *, question_in_prompt: bool = False,
    before: Callable[[int, Any], None] | None = None, batch: int = 16,
) -> Result:  # fmt: skip
    """Prefill the context once, then ask every question one token at a time on the same cache; `details` has every turn.

    Questions and right answers are fed (teacher forcing), so that a wrong answer does not spoil the turns after it.

    Args:
        model: a causal language model of transformers.
        examples: rows of one layout.
        make_cache: makes the cache of a batch, anything the model takes as `past_key_values` (`cache` in transformers from 5.24); default: a `DynamicCache`.
        question_in_prompt: the first question is part of the prefill, so that a cache which evicts by the last queries of the
            prompt knows what will be asked first, and nothing of later turns.
        before: called with the turn and the cache before each turn: eviction and fetching between turns go here.
        batch: rows at a time.

    Raises:
        CalibrationError: the model has another vocabulary.
    """
    started = time.perf_counter()
    with evaluating(_fitting(model)):
        parts = [
            _turns(model, ids.to(device_of(model)), examples, make_cache, question_in_prompt, before).cpu()
            for ids in examples.ids.split(batch)
        ]
    return _result(torch.cat(parts), time.perf_counter() - started)


def _turns(
    model: nn.Module, ids: Tensor, examples: Examples, make_cache: Callable[[], Any] | None, early: bool,
    before: Callable[[int, Any], None] | None,
) -> Bool[Tensor, "rows questions"]:  # fmt: skip
    if make_cache is None:
        from transformers import DynamicCache

        make_cache = DynamicCache
    cache, first = make_cache(), examples.questions[0]
    name = (
        "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    )  # transformers 5.24 renamed it
    done = first.answer if early else first.start
    found = torch.full_like(ids[:, 1:], -1)

    def feed(start: int, stop: int) -> None:
        at = torch.arange(start, stop, device=ids.device)[None]
        out = model(ids[:, start:stop], position_ids=at.expand(len(ids), -1), use_cache=True, **{name: cache})
        if stop <= found.shape[1]:
            found[:, stop - 1] = out.logits[:, -1].argmax(-1)

    feed(0, done)
    for turn, question in enumerate(examples.questions):
        if before is not None:
            before(turn, cache)
        for at in range(max(question.start, done), question.stop):
            feed(at, at + 1)
    return _right(found, ids[:, 1:], examples)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids.to(device_of(model)), use_cache=False).logits


def _right(found: Tensor, wanted: Tensor, examples: Examples) -> Bool[Tensor, "rows questions"]:
    """`found` and `wanted` begin at column 1 of the rows."""
    equal = found == wanted
    return torch.stack([equal[:, q.answer - 1 : q.stop - 1].all(dim=1) for q in examples.questions], dim=1)


def _result(right: Bool[Tensor, "rows questions"], seconds: float) -> Result:
    turns = [round(v, 6) for v in right.float().mean(dim=0).tolist()]
    return Result("exact match", float(right.float().mean()), {"turns": turns, "rows": len(right)}, seconds)


def _fitting(model: nn.Module) -> nn.Module:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is not None and size < VOCABULARY:
        raise CalibrationError(
            f"The token tasks have a vocabulary of {VOCABULARY}, the model one of {size}; `sparseworks/recall-lm` is trained on them."
        )
    return model

"""Setting: what a job needs besides a method, made from a model's name: calibration text, a quality task, batches to time, a recovery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import nn

from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.evaluate import (
    TASKS,
    OutputSimilarity,
    Task,
    documentation_passages,
    lm_batches,
    piece_batches,
    read_texts,
    task_for,
    timing_batch,
    token_batches,
)
from sparseworks.io import assets_of, load, load_tokenizer
from sparseworks.jobs.compress import Recover
from sparseworks.weights import Embedding, Logits, Similarity, SquareHead, Term

QUERY_TOKENS = 12  # a typical search query
_TIMED = 512  # texts that timed batches are made of; all of a large file would take minutes to tokenise
_STEP_TOKENS = 2048  # of a recovery step: many small steps, since time is what recovery lacks
_LEAST_BATCHES = 16  # of a little text: smaller steps rather than none
_HELD_OUT = 4  # batches that recovery does not train on, for validation


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None = by kind of model.

    Attributes:
        data: calibration and recovery text.
        task: name of the quality task, and `task_data` what it is measured on, at most `limit` items.
        batch: sequences per timed batch, and `length` tokens in each.
        samples: calibration sequences.
        minutes: of recovery; 0 = none.
    """

    data: Path | None = None
    task: str | None = None
    task_data: Path | None = None
    batch: int = 32
    length: int = 128
    samples: int = 128
    minutes: float = 0.0
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """Everything `compress` needs besides a method.

    Attributes:
        name: what the model was asked for as.
        assets: folder with the model's configuration and tokenizer, copied beside a saved model.
        batches: calibration batches.
        examples: case name -> batch to time, the headline first.
        recovery: how to recover, or None.
    """

    name: str
    model: nn.Module
    assets: Path | None
    batches: Sequence[Any]
    task: Task
    examples: Mapping[str, Any]
    recovery: Recover | None


@dataclass(frozen=True)
class _Kind:
    """How calibration, timing and recovery are made for one kind of model."""

    batches: Callable[[Sequence[str], Any, int, int | None], list[Any]]
    training: Callable[[Sequence[str], Any, Wish], list[Any]]
    examples: Callable[[Sequence[str], Any, Wish], dict[str, Any]]
    recovery: Callable[[nn.Module, list[Any], Wish], Recover]


def setting_for(name: str, wish: Wish) -> Setting:
    """Load the model called `name` and make its setting.

    Raises:
        ModelError: the model is unknown, or of a kind that has no built-in setting (use `sparseworks.compress`).
        CalibrationError: not enough text, or a task whose data are missing.
        UnknownNameError: unknown task.
    """
    model, tokenizer = load(name).eval(), load_tokenizer(name)
    kind = _kind_of(model, tokenizer)
    task = quality_task(model, tokenizer, wish)
    texts = _texts(wish.data)
    recovery = None
    if wish.minutes > 0:
        Random(wish.seed).shuffle(pool := list(texts))
        recovery = kind.recovery(model, kind.training(pool, tokenizer, wish), wish)
    return Setting(
        name=name,
        model=model,
        assets=assets_of(name),
        batches=kind.batches(texts, tokenizer, wish.length, wish.samples),
        task=task,
        examples=kind.examples(texts, tokenizer, wish),
        recovery=recovery,
    )


def calibration(model: nn.Module, tokenizer: Any, data: Path | None, *, length: int, samples: int) -> list[Any]:
    """Calibration batches of a file of text, or of the documentation on this machine, for this kind of model.

    Raises:
        ModelError: the model is of a kind that has no built-in setting.
        CalibrationError: not enough text.
    """
    return _kind_of(model, tokenizer).batches(_texts(data), tokenizer, length, samples)


def batches_of(model: nn.Module, texts: Sequence[str], *, length: int = 128) -> list[Any]:
    """Calibration batches of texts for a model of transformers, with the tokenizer that lies beside it.

    Raises:
        ModelError: the model does not say where it comes from, or has no tokenizer there.
        CalibrationError: not everything is a text, or there is too little of it.
    """
    if not all(isinstance(text, str) for text in texts):
        raise CalibrationError("Calibration data are batches or texts, not both.")
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ModelError(
            f"This {type(model).__name__} does not say where its tokenizer is: turn the texts into batches with "
            f"`sparseworks.evaluate.token_batches` or `lm_batches`."
        )
    tokenizer = load_tokenizer(name)
    return _kind_of(model, tokenizer).batches(texts, tokenizer, length, None)


def _texts(data: Path | None) -> list[str]:
    return read_texts(data) if data else [p.whole for p in documentation_passages()]


def _kind_of(model: nn.Module, tokenizer: Any) -> _Kind:
    kind = KINDS.get(task_for(model, tokenizer))
    if kind is None:
        raise ModelError(
            f"A {type(model).__name__} has no built-in setting; text encoders, text classifiers and causal language models have. "
            f"For others call `sparseworks.compress(model, method, data=batches, evaluate=task)` from Python."
        )
    return kind


def quality_task(model: nn.Module, tokenizer: Any, wish: Wish) -> Task:
    """The task the user named, or the usual one of this kind of model.

    Raises:
        UnknownNameError: no such task.
        CalibrationError: its data are missing or do not fit the model.
    """
    kind = TASKS.get(wish.task or task_for(model, tokenizer))
    return kind.build(model, tokenizer, wish.task_data, wish.limit)


# -- text encoders ------------------------------------------------------------------------------------------------


def _passages(texts: Sequence[str], tokenizer: Any, length: int, samples: int | None) -> list[Any]:
    return token_batches(texts, tokenizer, batch=32, length=length, samples=samples)


def _pieces(texts: Sequence[str], tokenizer: Any, wish: Wish) -> list[Any]:
    words = sum(len(text.split()) for text in texts)
    tokens = min(_STEP_TOKENS, max(wish.length, words // _LEAST_BATCHES))
    return piece_batches(texts, tokenizer, tokens=tokens, length=wish.length, seed=wish.seed)


def _documents_and_query(texts: Sequence[str], tokenizer: Any, wish: Wish) -> dict[str, Any]:
    return {
        f"{wish.batch} documents of {wish.length} tokens": timing_batch(
            texts[:_TIMED], tokenizer, wish.batch, wish.length
        ),
        f"1 query of {QUERY_TOKENS} tokens": timing_batch(texts[:_TIMED], tokenizer, 1, QUERY_TOKENS),
    }


# -- causal language models ---------------------------------------------------------------------------------------


def _windows(texts: Sequence[str], tokenizer: Any, length: int, samples: int | None) -> list[Any]:
    return lm_batches(texts, tokenizer, batch=8, length=length, samples=samples)


def _short_windows(texts: Sequence[str], tokenizer: Any, wish: Wish) -> list[Any]:
    return lm_batches(texts, tokenizer, batch=8, length=max(wish.length // 2, 16))


def _token_and_prompt(texts: Sequence[str], tokenizer: Any, wish: Wish) -> dict[str, Any]:
    prompt = timing_batch(texts[:_TIMED], tokenizer, 1, wish.length)["input_ids"]
    return {
        "1 token": {"input_ids": prompt[:, :1], "use_cache": False},
        f"a prompt of {wish.length} tokens": {"input_ids": prompt, "use_cache": False},
    }


# -- recovery -------------------------------------------------------------------------------------------------------


def _towards(*terms: Term) -> Callable[[nn.Module, list[Any], Wish], Recover]:
    """Recovery by these terms; what is kept is the state whose outputs are most like the dense model's on held-out text."""

    def recovery(model: nn.Module, pool: list[Any], wish: Wish) -> Recover:
        train, held = _split(pool)
        near = OutputSimilarity(held, model)
        return Recover(
            terms=terms,
            data=train,
            steps=None,
            minutes=wish.minutes,
            lr=3e-4,
            validate=lambda m: 1 - near(m).value,
            every=25,
        )

    return recovery


def _split(pool: list[Any]) -> tuple[list[Any], list[Any]]:
    if len(pool) <= _HELD_OUT:
        raise CalibrationError(
            f"Recovery keeps {_HELD_OUT} batches for validation, and the text makes {len(pool)}: give more text."
        )
    return pool[_HELD_OUT:], pool[:_HELD_OUT]


_LOGITS = _towards(Logits(1.0), SquareHead(0.5))

KINDS: dict[str, _Kind] = {
    "retrieval": _Kind(
        _passages, _pieces, _documents_and_query, _towards(Embedding(1.0), Similarity(0.2), SquareHead(0.3))
    ),
    "classification": _Kind(_passages, _pieces, _documents_and_query, _LOGITS),
    "perplexity": _Kind(_windows, _short_windows, _token_and_prompt, _LOGITS),
}
"""Usual task of a kind of model -> how its calibration, timing and recovery are made."""

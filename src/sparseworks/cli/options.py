"""Options that several commands share: each is spelled once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sparseworks.cli.machine import VALUES
from sparseworks.io.models import EMBEDDED_NAMES

Model = Annotated[
    str,
    typer.Argument(
        help=f"Local folder, hub id, or one of {EMBEDDED_NAMES} (`minilm`: extra demo).", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Remeasure = Annotated[
    bool,
    typer.Option(
        "--remeasure", help="Forget the timings of layers kept from earlier runs, if the machine was busy then."
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.", show_default=False)]


def starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Shell completion from names that are only looked up when they are wanted."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def share(help: str) -> Any:
    """An option that takes a share of the weights."""
    return typer.Option(help=help, min=0.0, max=1.0, show_default=False)


Values = Annotated[
    list[str] | None,
    typer.Option(
        help="Types in which kept values may also be stored, rounded: bf16, and int16 (for pattern block:1x2, many rows). Repeatable.",
        autocompletion=starting(lambda: VALUES),
        show_default=False,
    ),
]


def method_names() -> list[str]:
    """For completion: every registered method."""
    from sparseworks.core.method import METHODS

    return METHODS.names()


def task_names() -> list[str]:
    """For completion: every kind of evaluation."""
    from sparseworks.evaluate import TASKS

    return TASKS.names()


def noun_names(kind: str) -> list[str]:
    """For completion: what is registered of a noun, e.g. "allocate"."""
    import sparseworks.weights  # noqa: F401 - registers the library's own
    from sparseworks.core.config import NOUNS

    return NOUNS[kind][1].names()


Task = Annotated[
    str | None,
    typer.Option(
        help="perplexity, retrieval, similarity or classification; default: by kind of model.",
        show_default=False,
        autocompletion=starting(task_names),
    ),
]
TaskData = Annotated[
    Path | None,
    typer.Option(
        help="Evaluation text, labelled .jsonl, or a folder with corpus, queries and qrels (BEIR or TREC layout).",
        exists=True,
        show_default=False,
    ),
]
CalibrationText = Annotated[
    Path | None,
    typer.Option(
        help="Calibration text: .txt, .jsonl (field `text`) or .gz of them; default: documentation on this machine.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Evaluate on this many items only.", min=1, show_default=False)]
Samples = Annotated[int, typer.Option(help="Calibration sequences.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

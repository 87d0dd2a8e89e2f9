"""`sparseworks attention`: what the heads of a model look at, and what a method would keep of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sparseworks.cli.commands import Answer, as_table
from sparseworks.cli.machine import set_threads
from sparseworks.cli.options import Json, Model, Threads, starting
from sparseworks.core.errors import CalibrationError

_LONGEST = 4096


def attention_names() -> list[str]:
    """For completion: methods that choose what is attended to."""
    from sparseworks.attention import AttentionMethod

    return [m.name for m in AttentionMethod.all()]


def attention(
    model: Model,
    explain: Annotated[
        str, typer.Option(help="A text, or a file with one; up to 4096 tokens of it.", show_default=False)
    ],
    method: Annotated[
        str,
        typer.Option(
            help="How to choose, see `sparseworks methods --family attention`.",
            autocompletion=starting(attention_names),
        ),
    ] = "oracle_blocks",
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of the pairs that may be computed; default: the method's.", min=0.0, max=1.0, show_default=False
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a block, for methods of blocks; default: the method's.", min=1, show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.", dir_okay=False)] = Path("attention.html"),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Read a text and show, for every layer and head, what it attends to: mass kept, share computed, the nearest static pattern.

    Examples:

    `sparseworks attention sparseworks/tiny-lm --explain README.md --block 16 --density 0.2`

    `sparseworks attention sparseworks/tiny-lm --explain README.md --method sink_window --json`
    """
    from sparseworks.cli.app import show

    show(run_explain(model, explain, method, density, block, out, threads), as_json)


def run_explain(
    model: str, text: str, method: str, density: float | None, block: int | None, out: Path, threads: int | None
) -> Answer:
    """The page, and the same figures as a table."""
    import sparseworks as sw
    from sparseworks.attention import AttentionMethod, blocks
    from sparseworks.attention.explain import explain
    from sparseworks.io import load_tokenizer
    from sparseworks.report.attended import save_attention

    set_threads(threads)
    changes: dict[str, Any] = {} if density is None else {"density": density}
    changes |= {} if block is None else {"pattern": blocks(block)}
    chosen = AttentionMethod.of(method).with_(**changes)
    ids = load_tokenizer(model)(_text(text), return_tensors="pt", truncation=True, max_length=_LONGEST)["input_ids"]
    loaded = sw.load(model).eval()
    longest = getattr(loaded.config, "max_position_embeddings", _LONGEST)
    found = explain(loaded, ids[:, :longest], chosen)
    page = save_attention(model, found.to_data(), found.maps, found.kept, out)
    rows = [
        [str(h.layer), str(h.head), f"{h.density:.1%}", f"{h.recall:.1%}", f"{h.best:.1%}", h.pattern, f"{h.pattern_recall:.1%}"]
        for h in found.heads
    ]  # fmt: skip
    heads = ["layer", "head", "density", "recall", "best", "nearest pattern", "its recall"]
    return found.to_data() | {"page": str(page)}, as_table(f"{found.tokens} tokens; maps in {page}", heads, rows)


def _text(given: str) -> str:
    """The text itself, or that of a file of this name.

    Raises:
        CalibrationError: empty, or a file that cannot be read as text.
    """
    text = given
    if os.path.isfile(given):  # unlike Path.is_file, no error where a text is longer than a name may be
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"{given} cannot be read as text: {error}.") from None
    elif Path(given).suffix in (".txt", ".md") and not any(c.isspace() for c in given):
        raise CalibrationError(f"There is no file {given}.")
    if not text.strip():
        raise CalibrationError("The text to explain is empty.")
    return text

"""`sparseworks compress`: from options to a finished folder with model, report and figures; resumable."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from sparseworks.core.errors import BudgetError, CheckpointError, RecipeError, SparseworksError
from sparseworks.core.method import Method, method
from sparseworks.core.recipe import Recipe

GOAL_MISSED = 3
DEMO = {"method": "sparsegpt", "density": 0.3, "recover": 2.0}
"""The embedded demonstration: what a model without options gets, chosen to take under six minutes on two cores."""


def run_compress(**given: Any) -> int:
    """Run the job; returns the exit code (0, or 3 when a goal is not met)."""
    from sparseworks.cli.commands import set_threads
    from sparseworks.exec.memory import reuse_memory
    from sparseworks.jobs import compress
    from sparseworks.jobs.setting import setting_for

    demo = given["model"] is None
    say = _speaker()
    set_threads(given["threads"])
    reuse_memory()
    out = Path(given["out"])
    how = _method(given, demo)
    goal = _goal(given)
    work = _workdir(out, how, given)
    setting = setting_for(given["model"] or "minilm", _wish(given, demo))
    result = compress(
        setting.model,
        how,
        data=setting.batches,
        evaluate=setting.task,
        goal=goal,
        examples=setting.examples,
        recovery=setting.recovery,
        skip=given["skip"] or (),
        value_dtypes=_dtypes(given["bf16"]),
        workdir=work,
        seed=given["seed"],
        progress=sys.stderr.isatty(),
        say=say,
        name=setting.name,
        command=shlex.join(["sparseworks", *sys.argv[1:]]),
        assets=setting.assets,
    )
    result.save(out / "model", layout=given["layout"], overwrite=True)
    result.report.save(out / "report.html")
    _write(out / "result.json", result.data)
    shutil.rmtree(work, ignore_errors=True)
    typer.echo(json.dumps(result.data, indent=1, default=str) if given["as_json"] else _summary(result, out))
    return 0 if goal is None else _verdict(goal, result.data, say)


def _method(given: dict[str, Any], demo: bool) -> Method | Recipe:
    if given["recipe"] is not None:
        if given["method"] or given["density"] or given["pattern"]:
            raise RecipeError("A recipe states its own methods: leave out --method, --density and --pattern.")
        return Recipe.from_yaml(Path(given["recipe"]).read_text(encoding="utf-8"))
    import sparseworks.weights  # noqa: F401 - registers the methods

    changes = {k: given[k] for k in ("density", "pattern", "allocate", "repair") if given[k] is not None}
    if demo and given["density"] is None and given["pattern"] is None and given["method"] is None:
        changes["density"] = DEMO["density"]
    return method(given["method"] or str(DEMO["method"]), **changes)


def _goal(given: dict[str, Any]) -> Any:
    from sparseworks.jobs import Goal

    drop = None if given["max_drop"] is None else read_share(given["max_drop"])
    return None if given["speedup"] is None and drop is None else Goal(given["speedup"], drop)


def read_share(text: str) -> float:
    """`1%` or `0.01` -> 0.01.

    Raises:
        BudgetError: neither.
    """
    try:
        return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise BudgetError(f"Cannot read {text!r} as a share; write 1% or 0.01.") from None


def _wish(given: dict[str, Any], demo: bool) -> Any:
    from sparseworks.jobs.setting import Wish

    minutes = given["recover"] if given["recover"] >= 0 else (float(DEMO["recover"]) if demo else 0.0)
    names = ("data", "task", "task_data", "batch", "length", "samples", "limit", "seed")
    return Wish(minutes=minutes, **{k: given[k] for k in names})


def _workdir(out: Path, how: Method | Recipe, given: dict[str, Any]) -> Path:
    """The folder of unfinished state inside `out`; refuses to overwrite a finished result or to resume another run.

    Raises:
        CheckpointError: `out` holds a finished result or an unfinished run of another command, without --overwrite.
    """
    work, mark = out / ".unfinished", out / ".unfinished" / "command.json"
    if (out / "result.json").exists() and not work.exists() and not given["overwrite"]:
        raise CheckpointError(f"{out} holds a finished result; choose another --out, or pass --overwrite.")
    ignored = ("overwrite", "as_json", "threads", "out")
    asked = {k: str(v) for k, v in given.items() if k not in ignored} | {"recipe": Recipe.of(how).to_yaml()}
    if work.exists() and (not mark.exists() or _read(mark) != asked):
        if mark.exists() and not given["overwrite"]:
            raise CheckpointError(
                f"{out} holds an unfinished run of another command; give that command again to finish it, "
                f"choose another --out, or pass --overwrite to discard it."
            )
        shutil.rmtree(work)
    _write(mark, asked)
    return work


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _write(path: Path, data: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(data, indent=1, default=str), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SparseworksError(f"Cannot write {path}: {error}") from error


def _dtypes(bf16: bool) -> tuple[Any, ...]:
    import torch

    return (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)


def _speaker() -> Callable[[str], None]:
    """Progress goes to standard error, so that standard output holds the answer alone."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return lambda line: console.print(line, markup=False)


def _summary(result: Any, out: Path) -> str:
    frontier = result.data["frontier"]
    lines = [str(result)]
    if len(frontier) > 2:
        lines += ["", "frontier (measured):"]
        lines += [
            f"  {p['speed']:.2f}x  {result.data['quality']['metric']} {p['quality']:.4g}  {p['label']}"
            for p in frontier
        ]
    return "\n".join([*lines, "", f"report: {out / 'report.html'}", f"model:  {out / 'model'}"])


def _verdict(goal: Any, data: dict[str, Any], say: Callable[[str], None]) -> int:
    ratio, loss = data["speed"]["ratio"], data["quality"]["drop"]
    if goal.met(ratio, loss):
        return 0
    wanted = [
        f"{goal.speedup:.2f}x" if goal.speedup else "",
        f"a loss of at most {goal.max_drop:.2%}" if goal.max_drop is not None else "",
    ]
    say(f"The goal ({' and '.join(filter(None, wanted))}) was not met: {ratio:.2f}x, loss {loss:.2%}. "
        f"Recovery helps most: --recover MINUTES; or allow a larger drop.")  # fmt: skip
    return GOAL_MISSED

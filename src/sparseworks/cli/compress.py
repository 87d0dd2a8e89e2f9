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

from sparseworks.cli.machine import forget_timings, set_threads, value_names, value_types
from sparseworks.core.errors import BudgetError, CheckpointError, RecipeError, UnknownNameError
from sparseworks.core.method import Method, method
from sparseworks.core.recipe import Recipe
from sparseworks.jobs.goal import PATTERNS, Goal, UnreachableError
from sparseworks.jobs.journal import read_json, write_json
from sparseworks.jobs.result import Result, drop

GOAL_MISSED = 3
_MARK = "command.json"
DEMO = {"method": "sparsegpt", "pattern": "block:1x2", "density": 0.65, "values": ("int16",), "recover": 2.0}
"""The embedded demonstration: what a model without options gets, chosen to take under six minutes on two cores."""


def run_compress(**given: Any) -> int:
    """Run the job; returns the exit code (0, or 3 when a goal is not met)."""
    from sparseworks.exec.memory import reuse_memory

    demo = given["model"] is None
    say = _speaker()
    set_threads(given["threads"])
    reuse_memory()
    out = Path(given["out"] or ("out/demo" if demo else "out/compressed"))
    given["values"] = given["values"] or (DEMO["values"] if demo and _as_it_comes(given) else ())
    value_types(given["values"])
    how, goal = chosen_method(given, demo), _goal(given)
    _layout(given["layout"])
    work = _workdir(out, how, given)
    if given["remeasure"]:
        forget_timings()
    try:
        result = _compress(how, goal, given, work, say)
    except UnreachableError as error:
        say(str(error))
        return GOAL_MISSED
    result.save(out / "model", layout=given["layout"], overwrite=True)
    result.report.save(out / "report.html")
    write_json(out / "result.json", result.data)
    (work / _MARK).unlink(missing_ok=True)  # first: what is left of a folder without it is no unfinished run
    shutil.rmtree(work, ignore_errors=True)
    typer.echo(json.dumps(result.data, indent=1, default=str) if given["as_json"] else _summary(result, out))
    return 0 if goal is None else _verdict(goal, result.data, say)


def _compress(
    how: Method | Recipe, goal: Goal | None, given: dict[str, Any], work: Path, say: Callable[[str], None]
) -> Result:
    from sparseworks.jobs import compress
    from sparseworks.jobs.setting import setting_for

    name = given["model"] or "minilm"
    say(f"load {name}, calibration text and task ...")
    setting = setting_for(name, _wish(given, demo=given["model"] is None))
    return compress(
        setting.model,
        how,
        data=setting.batches,
        evaluate=setting.task,
        goal=goal,
        examples=setting.examples,
        recovery=setting.recovery,
        skip=given["skip"] or (),
        value_dtypes=value_types(given["values"]),
        workdir=work,
        seed=given["seed"],
        progress=sys.stderr.isatty(),
        say=say,
        name=setting.name,
        command=shlex.join(["sparseworks", *sys.argv[1:]]),
        assets=setting.assets,
    )


def chosen_method(given: dict[str, Any], demo: bool = False) -> Method | Recipe:
    """The method or recipe that the options name.

    Raises:
        RecipeError: a recipe beside options that it states itself, or one that cannot be read.
        UnknownNameError: no such method.
    """
    changes = {k: given[k] for k in ("density", "pattern", "allocate", "repair") if given[k] is not None}
    if given["recipe"] is not None:
        if changes or given["method"] is not None:
            raise RecipeError(
                "A recipe states its own methods: leave out --method, --density, --pattern, --allocate and --repair."
            )
        try:
            return Recipe.from_yaml(Path(given["recipe"]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe {given['recipe']}: {error}") from error
    import sparseworks.weights  # noqa: F401 - registers the methods

    if demo and _as_it_comes(given):
        changes |= {"pattern": DEMO["pattern"], "density": DEMO["density"]}
    return method(given["method"] or str(DEMO["method"]), **changes)


def _as_it_comes(given: dict[str, Any]) -> bool:
    """Whether the user left it to us what is pruned and how."""
    return all(given[k] is None for k in ("method", "density", "pattern", "recipe"))


def _goal(given: dict[str, Any]) -> Goal | None:
    drop = None if given["max_drop"] is None else read_share(given["max_drop"])
    if given["speedup"] is None and drop is None:
        return None
    if given["recipe"] is not None:
        raise RecipeError("A search varies one method; give --method instead of --recipe, or leave the goal out.")
    narrowed: dict[str, Any] = {}
    if given["pattern"] is not None:
        narrowed["patterns"] = (given["pattern"],)
    elif "int16" in value_names(given["values"]):
        narrowed["patterns"] = (*PATTERNS, "block:1x2")  # what the kernels for 16-bit values read
    if given["density"] is not None:
        narrowed["densities"] = (given["density"],)
    return Goal(given["speedup"], drop, **narrowed)


def _layout(name: str) -> None:
    """Refuse an unknown layout before the work instead of after it."""
    from sparseworks.io import LAYOUTS

    if name not in LAYOUTS:
        raise UnknownNameError("layout", name, LAYOUTS)


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

    minutes = given["recover"] if given["recover"] is not None else (float(DEMO["recover"]) if demo else 0.0)
    names = ("data", "task", "task_data", "batch", "length", "samples", "limit", "seed")
    return Wish(minutes=minutes, **{k: given[k] for k in names})


def _workdir(out: Path, how: Method | Recipe, given: dict[str, Any]) -> Path:
    """The folder of unfinished state inside `out`; refuses to overwrite a finished result or to resume another run.

    Raises:
        CheckpointError: `out` holds a finished result or an unfinished run of another command, without --overwrite.
    """
    work, mark = out / ".unfinished", out / ".unfinished" / _MARK
    if (out / "result.json").exists() and not mark.exists() and not given["overwrite"]:
        raise CheckpointError(f"{out} holds a finished result; choose another --out, or pass --overwrite.")
    ignored = ("overwrite", "as_json", "threads", "out", "remeasure")
    asked = {k: str(v) for k, v in given.items() if k not in ignored} | {"recipe": Recipe.of(how).to_yaml()}
    if work.exists() and read_json(mark) != asked:
        if mark.exists() and not given["overwrite"]:
            raise CheckpointError(
                f"{out} holds an unfinished run of another command; give that command again to finish it, "
                f"choose another --out, or pass --overwrite to discard it."
            )
        shutil.rmtree(work)
    write_json(mark, asked)
    return work


def _speaker() -> Callable[[str], None]:
    """Progress goes to standard error, so that standard output holds the answer alone."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return lambda line: console.print(line, markup=False, soft_wrap=True)


def _summary(result: Any, out: Path) -> str:
    lines = [str(result)]
    if len(result.data["frontier"]) > 2:
        lines += ["", *_frontier(result.data)]
    return "\n".join([*lines, "", f"report: {out / 'report.html'}", f"model:  {out / 'model'}"])


def _frontier(data: dict[str, Any]) -> list[str]:
    """Speed, quality and loss of every variant that none beats in both, slowest first."""
    quality = data["quality"]
    name, width = quality["metric"], max(8, len(quality["metric"]))
    lines = [f"{'speed':>8}  {name:>{width}}  {'loss':>7}  variant"]
    for p in sorted(data["frontier"], key=lambda p: p["speed"]):
        loss = drop(quality["dense"], p["quality"], quality["higher_is_better"])
        lines.append(f"{p['speed']:>7.2f}x  {p['quality']:>{width}.4g}  {loss:>7.2%}  {p['label']}")
    return lines


def _verdict(goal: Goal, data: dict[str, Any], say: Callable[[str], None]) -> int:
    ratio, loss = data["speed"]["ratio"], data["quality"]["drop"]
    if goal.met(ratio, loss):
        return 0
    wanted = [
        f"{goal.speedup:.2f}x" if goal.speedup else "",
        f"a loss of at most {goal.max_drop:.2%}" if goal.max_drop is not None else "",
    ]
    slow = goal.speedup is not None and ratio < goal.speedup
    advice = (
        "the plan in the report says what bounds each layer"
        if slow
        else "recovery helps most: --recover MINUTES; or allow a larger drop"
    )
    say(f"The goal ({' and '.join(filter(None, wanted))}) was not met: {ratio:.2f}x, loss {loss:.2%}; {advice}.")
    return GOAL_MISSED

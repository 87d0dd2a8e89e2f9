"""Commands: compress, inspect, plan, bench, methods, compare, evaluate, attention, features, index, search, serve. Each takes `--json`; exit code 0 = done, 1 = error, 2 = usage, 3 = goal not met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sparseworks.cli.attention import attention
from sparseworks.cli.features import features
from sparseworks.cli.goals import (
    Allocate,
    Density,
    Layout,
    MaxDrop,
    MethodName,
    ModelOrDemo,
    Out,
    PatternText,
    RecipeFile,
    Recover,
    Repair,
    Skip,
    Speedup,
)
from sparseworks.cli.machine import VALUES
from sparseworks.cli.options import (
    CalibrationText,
    Json,
    Limit,
    Model,
    Remeasure,
    Samples,
    Seed,
    Task,
    TaskData,
    Threads,
    Values,
    method_names,
    share,
    starting,
)
from sparseworks.cli.retrieval import index, search, serve
from sparseworks.io.models import EMBEDDED_NAMES

INTERRUPTED = "sparseworks: interrupted. Run the same command again to go on from the last finished block."


class _Group(TyperGroup):
    """Ctrl-C ends with 130 and a line that says how to go on, whatever the version of typer makes of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="sparseworks",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Make PyTorch models sparse, and measurably faster. MODEL is a local folder, a hub id, or one of {EMBEDDED_NAMES}.",
)


def _version(asked: bool) -> None:
    if asked:
        from sparseworks import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def compress(
    model: ModelOrDemo = None,
    out: Out = None,
    method: MethodName = None,
    recipe: RecipeFile = None,
    density: Density = None,
    pattern: PatternText = None,
    allocate: Allocate = None,
    repair: Repair = None,
    recover: Recover = None,
    speedup: Speedup = None,
    max_drop: MaxDrop = None,
    data: CalibrationText = None,
    task: Task = None,
    task_data: TaskData = None,
    batch: Annotated[int, typer.Option(help="Sequences per timed batch.", min=1)] = 32,
    length: Annotated[int, typer.Option(help="Tokens per timed and calibration sequence.", min=1)] = 128,
    samples: Samples = 128,
    limit: Limit = None,
    values: Values = None,
    layout: Layout = "bitmask",
    skip: Skip = None,
    seed: Seed = 0,
    threads: Threads = None,
    remeasure: Remeasure = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Prune, repair, recover, plan and measure a model; write the model and a one-file report.

    Without MODEL: a demonstration on all-MiniLM-L6-v2, offline, in a few minutes. With `--speedup` or `--max-drop` densities,
    patterns and allocations are searched site by site, and the frontier is printed; `--pattern` and `--density` narrow the
    search. An interrupted run goes on when the same command is given again.

    Exit code 0: done; 1: an error, in one sentence; 2: wrong usage; 3: the goal was not met; 130: interrupted.

    Examples:

    `sparseworks compress`

    `sparseworks compress sparseworks/tiny-lm --method sparsegpt --density 0.5 --out out/lm`

    `sparseworks compress ./my-model --speedup 1.5 --max-drop 1% --data texts.jsonl --out out/fast`
    """
    from sparseworks.cli.compress import run_compress

    given = {k: v for k, v in locals().items() if k != "run_compress"}
    raise typer.Exit(run_compress(**given))


@app.command()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the pruned model; must not exist.", file_okay=False)] = Path(
        "out/pruned"
    ),
    method: MethodName = None,
    recipe: RecipeFile = None,
    density: Density = None,
    pattern: PatternText = None,
    allocate: Allocate = None,
    repair: Repair = None,
    data: CalibrationText = None,
    length: Annotated[int, typer.Option(help="Tokens per calibration sequence.", min=1)] = 128,
    samples: Samples = 128,
    skip: Skip = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Prune a model on disk block by block, without ever loading it: memory is about one block and its calibration.

    The folder that comes out is read by any Hugging Face loader, and by `sparseworks plan` and `evaluate`. Nothing is recovered
    or measured; `compress` does that for models that fit in memory. An interrupted run goes on when the same command is given again.

    Examples:

    `sparseworks prune sparseworks/tiny-lm --method wanda --density 0.5 --out out/half`

    `sparseworks prune ./my-llama --method sparsegpt --pattern 2:4 --data texts.jsonl --length 1024 --out out/2of4`
    """
    from sparseworks.cli.prune import run_prune

    given = {
        "method": method,
        "recipe": recipe,
        "density": density,
        "pattern": pattern,
        "allocate": allocate,
        "repair": repair,
    }
    show(run_prune(model, given, out, data, length, samples, skip or (), seed, threads), as_json)


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """List what can become sparse: sites, repeated blocks, coupled units, and the supports of an already sparse model.

    Examples:

    `sparseworks inspect sparseworks/tiny-lm`

    `sparseworks inspect out/demo/model --json`
    """
    from sparseworks.cli.commands import run_inspect

    show(run_inspect(model), as_json)


@app.command()
def plan(
    model: Model,
    batch: Annotated[str, typer.Option(help="Rows of the matrix products, comma-separated.")] = "1,16,256",
    density: Annotated[
        float | None,
        share(
            "Share kept by a trial mask, for a model that is not sparse yet; default: 0.3, or what the pattern fixes."
        ),
    ] = None,
    pattern: Annotated[str, typer.Option(help="Pattern of the trial mask.")] = "row",
    values: Values = None,
    threads: Threads = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time kernels, or only say what is expected of them.")
    ] = True,
    report: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write: time against density for every shape.", dir_okay=False, show_default=False
        ),
    ] = None,
    remeasure: Remeasure = False,
    as_json: Json = False,
) -> None:
    """Time every layer, dense and sparse, on this machine, and say which kernel wins and why.

    Timings are kept for this machine: a second plan of the same model is instant. Kernels that are not expected to win are not
    timed. `--no-measure` times nothing and prints expectations.

    Examples:

    `sparseworks plan sparseworks/tiny-lm --batch 1,16,256 --report plan.html`

    `sparseworks plan out/demo/model --batch 4096,12`

    `sparseworks plan minilm --density 0.45 --pattern block:1x2 --values int16 --batch 4096,12`
    """
    from sparseworks.cli.commands import run_plan
    from sparseworks.cli.machine import forget_timings

    if remeasure:
        forget_timings()
    show(run_plan(model, batch, density, pattern, values or (), threads, measure=measure, report=report), as_json)


@app.command()
def bench(
    shape: Annotated[str, typer.Option(help="OUTxIN of one linear layer.")] = "1024x1024",
    density: Annotated[
        float | None, share("Share of the weights kept; default: 0.1, or what the pattern fixes.")
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="Pattern of the support: row, 2:4, block:16x1, block:1x2, fan-in ...")
    ] = "row",
    batch: Annotated[int, typer.Option(help="Rows (tokens).", min=1)] = 64,
    values: Annotated[
        list[str] | None,
        typer.Option(
            help="Types in which our kernels may also store kept values: bf16, int16.  [default: both]",
            autocompletion=starting(lambda: VALUES),
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; every contender runs in each.", min=1)] = 15,
    rivals: Annotated[bool, typer.Option("--rivals/--no-rivals", help="Time other libraries too.")] = True,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time one linear layer: all our kernels beside what torch, ONNX Runtime, scipy and numba offer for it.

    Each contender is checked against the exact product first. All run in turn in every round, and with up to 64 rows on copies
    of the weight that no cache holds, as in a model. Shown: median time, ratio over dense torch in float32 with its quartiles,
    bytes of the weight, what bandwidth and arithmetic of this machine allow at best, and the relative error. Those that
    cannot take the case say why below the table.

    Examples:

    `sparseworks bench --shape 384x1536 --density 0.3 --batch 4096 --no-rivals`

    `sparseworks bench --shape 4096x4096 --pattern 2:4 --batch 1 --threads 1`

    `sparseworks bench --shape 4096x4096 --density 0.1 --batch 64 --json`
    """
    from sparseworks.cli.commands import run_bench

    show(run_bench(shape, density, pattern, batch, values or (), rounds, rivals, threads), as_json)


@app.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One method: its page.", show_default=False, autocompletion=starting(method_names)),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only this family.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the registered methods, or show one: what it does, formula, source, what it needs, when to use it and when not.

    Examples:

    `sparseworks methods --json`

    `sparseworks methods wanda`
    """
    from sparseworks.cli.commands import run_method, run_methods

    show(run_method(name) if name is not None else run_methods(family), as_json)


@app.command()
def compare(
    model: Model,
    methods: Annotated[
        str,
        typer.Option(help="Names, comma-separated, see `sparseworks methods`.", autocompletion=starting(method_names)),
    ] = "magnitude,wanda,sparsegpt",
    density: Annotated[
        str, typer.Option(help="Shares kept: 0.5, or 0.3,0.5, or 0.3:0.7 (five of them), or 0.3:0.7:9 (nine).")
    ] = "0.3:0.7",
    pattern: Annotated[str, typer.Option(help="In place of each method's own: row, 2:4, block:4x1 ...")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the records and of comparison.html.", file_okay=False)] = Path(
        "out/comparison"
    ),
    data: CalibrationText = None,
    task: Task = None,
    task_data: TaskData = None,
    limit: Limit = None,
    length: Annotated[int, typer.Option(help="Tokens per calibration sequence.", min=1)] = 128,
    samples: Samples = 128,
    jobs: Annotated[int, typer.Option(help="Cases at once, each in a process of its own.", min=1)] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Run the cases on the cluster that Ray is connected to.")] = False,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Prune a model by several methods at several densities and draw quality against what is kept.

    Every case is written when it is done; the same command goes on where it was cut off. Bad combinations are refused before
    any work is done.

    Examples:

    `sparseworks compare sparseworks/tiny-lm --methods magnitude,wanda,sparsegpt --density 0.3:0.7 --limit 20`

    `sparseworks compare sparseworks/tiny-lm --methods wanda,sparsegpt --pattern 2:4 --jobs 2`
    """
    from sparseworks.cli.commands import run_compare
    from sparseworks.jobs.setting import Wish

    wish = Wish(data=data, task=task, task_data=task_data, length=length, samples=samples, limit=limit, seed=seed)
    show(run_compare(model, methods, density, pattern, wish, out, jobs, ray, threads), as_json)


@app.command()
def evaluate(
    model: Model,
    task: Task = None,
    data: TaskData = None,
    limit: Limit = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure quality: perplexity of a causal LM, nDCG@10 of a text encoder.

    Examples:

    `sparseworks evaluate sparseworks/tiny-lm --limit 50`

    `sparseworks evaluate out/demo/model --task retrieval --data ./my-collection`
    """
    from sparseworks.cli.commands import run_evaluate

    show(run_evaluate(model, task, data, limit, threads), as_json)


app.command()(attention)
app.command()(features)
app.command()(index)
app.command()(search)
app.command()(serve)


def show(answer: tuple[Any, Any], as_json: bool) -> None:
    """Print `(data, text or rich renderable)`."""
    data, text = answer
    if as_json:
        typer.echo(json.dumps(data, indent=1, default=str))
        return
    if isinstance(text, str):  # as it is: a table of text must not be wrapped
        typer.echo(text)
        return
    from rich.console import Console

    Console().print(text)

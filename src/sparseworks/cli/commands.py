"""The smaller commands: each gives `(data for --json, text or table for people)`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseworks.cli.machine import VALUES, set_threads, threads_text, value_types
from sparseworks.core.errors import BudgetError, ModelError, ShapeError
from sparseworks.core.pattern import Pattern
from sparseworks.weights.show import Shown

Answer = tuple[Any, Any]


def run_inspect(name: str) -> Answer:
    """Sites, blocks, coupled units; supports where the model is sparse already."""
    from sparseworks.io import load
    from sparseworks.stream import blocks, couplings, sites

    model = load(name)
    supports = known_supports(model)
    found = sites(model)
    listed = [
        {
            "name": s.name,
            "kind": s.kind,
            "shape": list(s.shape),
            "density": supports[s.name].density if s.name in supports else 1.0,
            "tied": list(s.tied),
        }
        for s in found
    ]
    missing = [n for n in supports if n not in {s.name for s in found}]
    listed += [
        {"name": n, "kind": "packed", "shape": list(supports[n].shape), "density": supports[n].density, "tied": []}
        for n in missing
    ]
    data = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sites": listed,
        "blocks": [b.name for b in blocks(model)],
        "couplings": [{"name": c.name, "kind": c.kind, "units": c.units} for c in couplings(model)],
    }
    rows = [[s["name"], s["kind"], "x".join(map(str, s["shape"])), f"{s['density']:.1%}"] for s in listed]
    title = f"{data['model']}: {data['parameters']:,} parameters, {len(listed)} sites, {len(data['blocks'])} blocks"
    return data, as_table(title, ["site", "kind", "shape", "density"], rows)


def run_plan(
    name: str,
    batch: str,
    density: float | None,
    pattern: str,
    values: Sequence[str],
    threads: int | None,
    *,
    measure: bool = True,
    report: Path | None = None,
) -> Answer:
    """A measured plan (or one that is only expected), on the model's own supports or on trial masks by magnitude."""
    from sparseworks.exec import plan
    from sparseworks.io import load

    set_threads(threads)
    rows = _integers(batch)
    model = load(name).eval()
    if getattr(getattr(model, "sparsity", None), "layout", "") == "packed":
        raise ModelError(
            f"{name} was saved as packed: its kernels are fixed and its dense weights are gone. "
            f"Save it with the layout bitmask to plan it anew; `sparseworks inspect` lists what it holds."
        )
    supports = known_supports(model) or _trial(model, *_chosen(pattern, density, 0.3))
    drawn = plan(model, supports, batch=rows, dtypes=value_types(values), measure=measure)
    if report is not None:
        from sparseworks.report.planned import save_plan

        save_plan(drawn, report)
    return drawn.to_dict(), str(drawn)


def run_bench(
    shape: str,
    density: float | None,
    pattern: str,
    batch: int,
    values: Sequence[str],
    rounds: int,
    rivals: bool,
    threads: int | None,
) -> Answer:
    """One layer: every kernel that takes it and what other libraries offer, in turn on cold weights."""
    import torch

    from sparseworks.exec import measure
    from sparseworks.exec.bench import bench
    from sparseworks.exec.row import rows_text

    set_threads(threads)
    found = re.fullmatch(r"(\d+)x(\d+)", shape)
    if not found:
        raise ShapeError(f"A shape is OUTxIN, such as 1024x4096; got {shape!r}.")
    layer = torch.nn.Linear(int(found[2]), int(found[1]))
    support = _random_support(layer.weight, *_chosen(pattern, density, 0.1))
    dtypes = value_types(values or tuple(VALUES))
    timed, refused = bench(layer, support, batch, dtypes=dtypes, rivals=rivals, rounds=rounds)
    listed = [
        {
            "kernel": c.name,
            "ours": c.ours,
            "us": c.us,
            "ratio": c.ratio,
            "spread": (c.high - c.low) / c.ratio,
            "bytes": c.nbytes,
            "bound_us": c.bound_us,
            "error": c.error,
        }
        for c in timed
    ]
    data = {
        "shape": shape,
        "pattern": pattern,
        "density": support.density,
        "batch": batch,
        "machine": measure.machine(),
        "kernels": listed,
        "refused": refused,
    }
    rows = [
        [
            f"{c.name} *" if c.ours else c.name,
            f"{c.us:.1f}",
            f"{c.ratio:.2f}x",
            f"{c.low:.2f}-{c.high:.2f}",
            f"{c.nbytes / 1e6:.2f}",
            f"{c.bound_us:.1f}",
            f"{c.bound_us / c.us:.0%}",
            f"{c.error:.1e}",
        ]
        for c in timed
    ]
    title = f"{shape}, {pattern}, density {support.density:.1%}, {rows_text(batch)}, {threads_text()} (* ours)"
    heads = ["contender", "µs", "over dense", "quartiles", "MB", "bound µs", "of bound", "error"]
    table = as_table(title, heads, rows)
    table.caption = "\n".join(f"{name}: {why}" for name, why in refused.items())
    return data, table


def run_methods(family: str | None) -> Answer:
    """The registry, one record a method."""
    from sparseworks.core.errors import UnknownNameError
    from sparseworks.core.pages import method_table

    rows = method_table()
    families = {r["family"] for r in rows}
    if family is not None and family not in families:
        raise UnknownNameError("family", family, families)
    rows = [r for r in rows if family in (None, r["family"])]
    cells = [[r["name"], r["family"], r["source"], r["composition"]] for r in rows]
    return rows, as_table(f"{len(rows)} methods", ["method", "family", "source", "composition"], cells)


def run_method(name: str) -> Answer:
    """One method: the facts of its page, and the page."""
    from rich.markdown import Markdown

    from sparseworks.core.pages import method_facts, method_page

    facts = method_facts(name)
    return facts, Markdown(method_page(facts), hyperlinks=False)


def run_compare(
    name: str, methods: str, density: str, pattern: str, wish: Any, out: Path, jobs: int, ray: bool, threads: int | None
) -> Answer:
    """Several methods at several densities on one model; the page is written beside the records."""
    from dataclasses import asdict

    from sparseworks.jobs.compare import cases, run_cases, span
    from sparseworks.report.compared import cells, save_comparison

    set_threads(threads)
    wanted = cases([m.strip() for m in methods.split(",") if m.strip()], span(density), pattern)
    with Shown(progress=True).bar("compare", len(wanted)) as bar:
        rows = run_cases(
            name, wanted, wish, out, jobs=jobs, ray=ray, tick=lambda row: bar(1, f"{row.method} {row.density:g}")
        )
    page = save_comparison(name, rows, out / "comparison.html")
    metric = next((r.metric for r in rows if r.metric), "quality")
    head = ["method", "kept", metric, "dense", "seconds", "MB", ""]
    table = as_table(f"{name}; plot in {page}", head, [cells(r) for r in rows])
    return {"model": name, "page": str(page), "rows": [asdict(r) for r in rows]}, table


def run_evaluate(name: str, task: str | None, data: Path | None, limit: int | None, threads: int | None) -> Answer:
    """Quality of one model."""
    from sparseworks.io import load, load_tokenizer
    from sparseworks.jobs.setting import Wish, quality_task

    set_threads(threads)
    model = load(name).eval()
    chosen = quality_task(model, load_tokenizer(name), Wish(task=task, task_data=data, limit=limit))
    result = chosen(model, progress=sys.stderr.isatty())
    answer = {
        "model": name,
        "metric": result.metric,
        "value": result.value,
        "details": result.details,
        "seconds": result.seconds,
    }
    lines = [
        f"{result.metric}: {result.value:.4f}",
        *(f"  {k}: {v:.4f}" if isinstance(v, float) else f"  {k}: {v}" for k, v in result.details.items()),
    ]
    return answer, "\n".join(lines)


def known_supports(model: Any) -> dict[str, Any]:
    """Supports that a loaded model carries; none for a dense one."""
    sparsity = getattr(model, "sparsity", None)
    return dict(sparsity.supports) if sparsity is not None else {}


def _trial(model: Any, pattern: Pattern, density: float) -> dict[str, Any]:
    """Supports by magnitude, to try kernels on a model that is not sparse yet; sites the pattern does not fit stay dense."""
    from sparseworks.core.errors import PatternError
    from sparseworks.core.select import select
    from sparseworks.stream import sites

    chosen = {}
    for site in sites(model):
        weight = site.read(model)
        try:
            chosen[site.name] = select(weight.abs().float(), pattern, pattern.counts(site.shape, density))
        except PatternError:
            continue
    return chosen


def _chosen(text: str, density: float | None, usual: float) -> tuple[Pattern, float]:
    """The pattern, and the density that the user, else the pattern, else custom states."""
    pattern = Pattern.parse(text)
    fixed = pattern.fixed_density
    if fixed is not None and density is not None and density != fixed:
        raise BudgetError(f"Pattern {text} fixes the density at {fixed:g}; leave --density {density:g} out.")
    return pattern, usual if density is None else density


def _random_support(weight: Any, pattern: Pattern, density: float) -> Any:
    from sparseworks.core.select import select

    scores = weight.detach().abs()
    return select(scores, pattern, pattern.counts(tuple(scores.shape), density))


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ShapeError(f"Rows are integers separated by commas, such as 1,16,256; got {text!r}.") from None


def as_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A table for people."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False, header_style="bold")
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table

"""How far apart are the one-shot methods? Perplexity after pruning to 50, 60, 70 and 80 %, in the layout of the papers.

Rows are methods, columns sparsities, as in the tables of Wanda, OWL, DLP and EvoPress; the dense model stands in the first
row. Seeds differ in the calibration windows. Without `--text` the held-out part of the documentation is used, which `sparseworks/tiny-lm` saw in training.

    python benchmarks/weights/post_training.py --text wiki.test.txt.gz --calibration wiki.valid.txt.gz --json post_training
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import arguments
from rows import Cell, Row, Rows, by_cell, groups, record_of
from tiny_lm_quality import texts

import sparseworks as sw
from sparseworks.allocate import EvoPress
from sparseworks.core.method import Method
from sparseworks.evaluate import Perplexity, lm_windows
from sparseworks.evaluate.text import lm_stream
from sparseworks.io import load_tokenizer

DENSITIES = (0.5, 0.4, 0.3, 0.2)


def methods(search: EvoPress) -> dict[str, Method]:
    """Name in the table -> method at its default density."""
    wanda, sparsegpt = sw.method("wanda"), sw.method("sparsegpt")
    return {
        "magnitude": sw.method("magnitude"),
        "Wanda": wanda,
        "Wanda + DSnoT": sw.method("dsnot"),
        "Wanda + OWL": wanda.with_(allocate="owl"),
        "Wanda + DLP": wanda.with_(allocate="dlp"),
        "SparseGPT": sparsegpt,
        "SparseGPT + OWL": sparsegpt.with_(allocate="owl"),
        "SparseGPT + DLP": sparsegpt.with_(allocate="dlp"),
        "SparseGPT + EvoPress": sparsegpt.with_(allocate=search),
    }


ORDER = {
    0.5: ("SparseGPT", "Wanda", "magnitude"),
    0.4: ("SparseGPT", "Wanda", "magnitude"),
    0.3: ("SparseGPT + EvoPress", "SparseGPT + DLP", "SparseGPT + OWL", "SparseGPT"),
    0.2: ("SparseGPT + EvoPress", "SparseGPT + DLP", "SparseGPT + OWL", "SparseGPT"),
}
"""What the papers found, the lowest perplexity first."""


def measured(
    dense: Any, label: str, method: Method | None, density: float, batches: list[Any], quality: Perplexity, **known: Any
) -> Row:
    """Perplexity of a pruned copy."""
    model, supports = copy.deepcopy(dense), {}
    if method is not None:
        method = method.with_(density=density)
        supports = sw.prune(model, method, batches, progress=False).supports
    with torch.no_grad():
        value = quality(model).value
    record = record_of(
        method, supports, dense, metric="perplexity", value=value, higher_is_better=False, epochs=0,
        examples=sum(len(b["input_ids"]) for b in batches), **known,
    )  # fmt: skip
    return Row(label, density, record)


def orders(rows: Rows) -> list[dict[str, Any]]:
    """Whether the methods come in the order of the papers, by their means."""
    found, listed = by_cell(groups(rows.rows)[0]), []
    for density, order in ORDER.items():
        if all(density in found.get(name, {}) for name in order):
            means = [Cell.of(found[name][density]).mean for name in order]
            listed.append({"density": density, "order": order, "found": means, "holds": means == sorted(means)})
    return listed


def main() -> None:
    args = arguments(
        __doc__ or "",
        model={"default": "sparseworks/tiny-lm", "help": "a decoder: folder or name"},
        text={"type": Path, "help": "text to measure on (.txt, .jsonl, also .gz); default: held-out documentation"},
        calibration={"type": Path, "help": "text to calibrate on; default: the other part of the documentation"},
        context={"type": int, "default": 256, "help": "tokens of a window"},
        windows={"type": int, "default": 16, "help": "windows to measure on"},
        samples={"type": int, "default": 16, "help": "windows to calibrate on"},
        seeds={"type": int, "default": 3, "help": "choices of calibration windows"},
        generations={"type": int, "default": 30, "help": "of EvoPress"},
        step={
            "type": int,
            "default": 12_000,
            "help": "of EvoPress: weights between two levels; larger than in the paper, for few generations",
        },
        offspring={"type": int, "default": 8, "help": "of EvoPress, in every generation"},
    )
    windows, samples, generations, seeds = (
        (2, 4, 2, 1) if args.quick else (args.windows, args.samples, args.generations, args.seeds)
    )
    densities = DENSITIES[2:3] if args.quick else DENSITIES
    tokenizer, dense = load_tokenizer(args.model), sw.load(args.model)
    name = Path(args.model).name if Path(args.model).is_dir() else args.model
    text = args.text.name.partition(".")[0] if args.text else "held-out documentation"
    calibration = args.calibration.name.partition(".")[0] if args.calibration else "documentation"
    task = Perplexity(lm_stream(texts(args.text, held_out=True), tokenizer)[: windows * args.context], args.context)
    search = EvoPress(generations=generations, offspring=args.offspring, stages=((2, 1024), (1, 2048)), step=args.step)
    setting = {
        "model": name, "text": text, "calibration": calibration, "context": args.context,
        "evaluation tokens": len(task.tokens), "calibration windows": samples, "search": repr(search),
    }  # fmt: skip
    rows = Rows("post_training", setting, quick=args.quick)

    known = lm_windows(texts(args.calibration, held_out=False), tokenizer, args.context)

    def windows_of(seed: int) -> list[Any]:
        picked = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:samples]
        return [{"input_ids": ids} for ids in known[picked.sort().values].split(2)]

    def one(label: str, method: Method | None, density: float, seed: int) -> Row:
        data = [] if method is None else windows_of(seed)
        seen = "" if method is None else f"; {samples} windows of {args.context} tokens of {calibration}"
        return measured(
            dense,
            label,
            method,
            density,
            data,
            task,
            task=f"{text}, {name}",
            seed=seed,
            data=f"the shipped model{seen}",
        )

    rows.add("dense", lambda: one("dense", None, 1.0, 0))
    for seed in range(seeds):
        for label, method in methods(search).items():
            for density in densities:
                if isinstance(method.allocate, EvoPress) and label not in ORDER[density]:
                    continue  # its search is for high sparsity, and takes the longest
                make = lambda n=label, m=method, d=density, s=seed: one(n, m, d, s)  # noqa: E731
                rows.add(f"{label} {density:g} {seed}", make)
    rows.show()
    for found in orders(rows):
        said = "holds" if found["holds"] else "does not hold"
        print(f"{1 - found['density']:.0%}: {' < '.join(found['order'])}: {said}")
    rows.store(args.json, orders=orders(rows))


if __name__ == "__main__":
    main()

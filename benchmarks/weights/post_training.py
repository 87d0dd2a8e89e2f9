"""How far apart are the one-shot methods? Perplexity after pruning to 50, 60, 70 and 80 %, in the layout of the papers.

Rows are methods, columns sparsities, as in the tables of Wanda, OWL, DLP and EvoPress; the dense model stands in the first
row. Without `--text` the held-out part of the documentation is used, which `sparseworks/tiny-lm` saw in training.

    python benchmarks/weights/post_training.py --text wiki.test.txt.gz --calibration wiki.valid.txt.gz --json post_training
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import arguments, store, table
from tiny_lm_quality import texts

import sparseworks as sw
from sparseworks.allocate import EvoPress
from sparseworks.core.method import Method
from sparseworks.evaluate import Perplexity, lm_batches
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


def measured(dense: Any, method: Method, density: float, data: list[Any], task: Perplexity) -> dict[str, float]:
    """Perplexity of a pruned copy, the density that it has, and seconds of pruning."""
    model, started = copy.deepcopy(dense), time.perf_counter()
    found = sw.prune(model, method.with_(density=density), data, progress=False).supports.values()
    seconds = time.perf_counter() - started
    share = sum(s.count for s in found) / sum(s.size for s in found)
    return {"perplexity": task(model).value, "density": share, "seconds": seconds}


def main() -> None:
    args = arguments(
        __doc__ or "",
        model={"default": "sparseworks/tiny-lm", "help": "a decoder: folder or name"},
        text={"type": Path, "help": "text to measure on (.txt, .jsonl, also .gz); default: held-out documentation"},
        calibration={"type": Path, "help": "text to calibrate on; default: the other part of the documentation"},
        context={"type": int, "default": 256, "help": "tokens of a window"},
        windows={"type": int, "default": 32, "help": "windows to measure on"},
        samples={"type": int, "default": 32, "help": "windows to calibrate on"},
        generations={"type": int, "default": 30, "help": "of EvoPress"},
        step={
            "type": int,
            "default": 12_000,
            "help": "of EvoPress: weights between two levels; larger than in the paper, for few generations",
        },
        offspring={"type": int, "default": 8, "help": "of EvoPress, in every generation"},
    )
    windows, samples, generations = (2, 4, 2) if args.quick else (args.windows, args.samples, args.generations)
    densities = DENSITIES[2:3] if args.quick else DENSITIES
    tokenizer, dense = load_tokenizer(args.model), sw.load(args.model)
    data = lm_batches(texts(args.calibration, held_out=False), tokenizer, args.context, samples, batch=2)
    task = Perplexity(lm_stream(texts(args.text, held_out=True), tokenizer)[: windows * args.context], args.context)
    search = EvoPress(generations=generations, offspring=args.offspring, stages=((2, 1024), (1, 2048)), step=args.step)
    found: dict[str, dict[str, dict[str, float]]] = {}
    with torch.no_grad():
        whole = task(dense).value
        for name, method in methods(search).items():
            found[name] = {}
            for density in densities:
                found[name][f"{density:g}"] = case = measured(dense, method, density, data, task)
                print(f"{name:<22} {1 - density:.0%}  {case['perplexity']:9.2f}  {case['seconds']:6.1f} s", flush=True)
    head = ("method", *(f"{1 - d:.0%}" for d in densities))
    rows = [(n, *(f"{c['perplexity']:.2f}" for c in cases.values())) for n, cases in found.items()]
    table(f"perplexity of {args.model}, dense {whole:.2f}", head, rows)
    orders = []
    for density in densities:
        values = [found[n][f"{density:g}"]["perplexity"] for n in ORDER[density]]
        orders.append({"density": density, "order": ORDER[density], "found": values, "holds": values == sorted(values)})
        print(f"{1 - density:.0%}: {' < '.join(ORDER[density])}: {'holds' if orders[-1]['holds'] else 'does not hold'}")
    setting = {
        "model": Path(args.model).name if Path(args.model).is_dir() else args.model,
        "text": args.text.name if args.text else "held-out documentation",
        "calibration": args.calibration.name if args.calibration else "documentation",
        "context": args.context, "evaluation tokens": len(task.tokens), "calibration windows": samples,
        "search": repr(search),
    }  # fmt: skip
    store("post_training", [], args.json, setting=setting, dense=whole, perplexity=found, orders=orders)


if __name__ == "__main__":
    main()

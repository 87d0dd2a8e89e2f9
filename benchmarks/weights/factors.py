"""Which form of factors loses least at equal bytes? Relative output error of single layers, and Monarch products beside dense ones.

Rows are layers of the model, columns forms; bytes are those of 16-bit numbers with all indices counted, at 30, 40 and 50 %
less than dense. ARMOR and SparseGPT's 2:4 stand apart, since their size is given: the share of the dense bytes is shown.
The second table is time: both block-diagonal products and the reordering of a Monarch matrix with sqrt(n) blocks, beside
the dense product of the same size.

    python benchmarks/weights/factors.py --json factors
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from tiny_lm_quality import texts

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.stats import Gram, InputMoments, Stats
from sparseworks.evaluate import lm_batches
from sparseworks.exec import measure
from sparseworks.io import load_tokenizer
from sparseworks.stream import gather
from sparseworks.weights.factors import Monarch
from sparseworks.weights.matrix import relative_error

SIZED = {
    "svd": "SVD",
    "svd_llm": "whitened SVD",
    "monarch": "Monarch",
    "cospadi": "CoSpaDi",
    "dsformer": "dense x sparse",
}
LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def errors(weight: torch.Tensor, stats: Stats, density: float) -> dict[str, float]:
    """Relative output error of every form whose size follows the budget."""
    found = {}
    for name, label in SIZED.items():
        operator = sw.factorise_matrix(weight, sw.method(name, density=density), stats=stats)
        assert operator.stored.words() <= density * weight.numel()
        found[label] = relative_error(weight, operator.dense().detach(), stats)
    return found


def wrapped(weight: torch.Tensor, stats: Stats) -> dict[str, float]:
    """ARMOR beside 2:4 methods, and its share of the dense bytes."""
    operator = sw.factorise_matrix(weight, "armor", stats=stats)
    found = {"ARMOR": relative_error(weight, operator.dense().detach(), stats)}
    for name in ("wanda", "sparsegpt"):
        method: Method = sw.method(name, pattern="2:4")
        found[f"{name} 2:4"] = relative_error(weight, sw.prune_matrix(weight, method, stats=stats)[0], stats)
    return {**found, "bytes of ARMOR": operator.stored.words() / weight.numel(), "bytes of 2:4": 0.5625}


def product_lines(n: int, rows: int, rounds: int) -> common.Line:
    """One Monarch product beside one dense product."""
    blocks = round(n**0.5)
    method = sw.method("monarch", form=Monarch(blocks))
    operator = method.form.start((n, n), method, 2 * blocks * n) if method.form else None
    assert operator is not None and operator.stored.numbers == 2 * blocks * n
    x, weight = torch.randn(rows, n), torch.randn(n, n)
    timings = measure.compare({"monarch": lambda: operator(x), "dense": lambda: F.linear(x, weight)}, rounds=rounds)
    bound = 1e6 * operator.flops(rows) / measure.ceilings().flops
    return common.line(f"{n} x {n}, {rows} rows", timings, "monarch", "dense", bound)


def main() -> None:
    args = common.arguments(
        __doc__ or "",
        model={"default": "sparseworks/tiny-lm", "help": "a decoder: folder or name"},
        calibration={"type": Path, "help": "text to calibrate on; default: documentation"},
        block={"type": int, "default": 2, "help": "which block's layers"},
        samples={"type": int, "default": 32, "help": "windows of 256 tokens to calibrate on"},
    )
    tokenizer, model = load_tokenizer(args.model), sw.load(args.model)
    samples = 4 if args.quick else args.samples
    data = lm_batches(texts(args.calibration, held_out=False), tokenizer, 256, samples, batch=2)
    chosen: list[Site] = [
        s
        for s in sw.sites(model)
        if f"layers.{args.block}." in s.name and s.name.endswith(LAYERS[: 1 if args.quick else 4])
    ]
    stats = gather(model, chosen, frozenset({Gram, InputMoments}), data)
    found: dict[str, dict[str, Any]] = {}
    fixed: dict[str, dict[str, float]] = {}
    for site in chosen:
        weight = site.read(model)
        for density in (0.7,) if args.quick else (0.7, 0.6, 0.5):
            found[f"{site.name} at {density:.0%}"] = errors(weight, stats[site.name], density)
        fixed[site.name] = wrapped(weight, stats[site.name])
    for title, table in (("relative output error at equal bytes", found), ("at the size of 2:4", fixed)):
        head = ("layer", *next(iter(table.values())))
        common.table(title, head, [(name, *(f"{e:.4f}" for e in row.values())) for name, row in table.items()])
    sizes = [(1024, 64)] if args.quick else [(n, rows) for n in (1024, 2304, 4096) for rows in (1, 16, 256)]
    with torch.no_grad():
        lines = [product_lines(n, rows, args.rounds) for n, rows in sizes]
    common.show(lines, f"Monarch products, {args.threads} threads")
    setting = {"model": args.model, "block": args.block, "calibration windows": samples}
    common.store("factors", lines, args.json, setting=setting, errors=found, fixed=fixed)


if __name__ == "__main__":
    main()

"""Which form of factors loses least at equal bytes? Relative output error of single layers, and Monarch products beside dense ones.

A table a layer of the model, methods x bytes saved: bytes are those of 16-bit numbers with all indices counted, 30, 40 and 50 %
less than dense; ARMOR and 2:4 stand where their size puts them. Seeds differ in the calibration windows.
The last table is time: both block-diagonal products and the reordering of a Monarch matrix with sqrt(n) blocks, beside
the dense product of the same size.

    python benchmarks/weights/factors.py --threads 1 --times
    python benchmarks/weights/factors.py --threads 1 --json factors
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from rows import TIMES, Row, Rows, record_of
from tiny_lm_quality import texts
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.stats import Gram, InputMoments, Stats
from sparseworks.evaluate import Record, lm_windows
from sparseworks.exec import measure
from sparseworks.io import load_tokenizer
from sparseworks.stream import gather
from sparseworks.weights.factors import Monarch
from sparseworks.weights.matrix import relative_error

SIZED = {
    "SVD": "svd",
    "whitened SVD": "svd_llm",
    "Monarch": "monarch",
    "CoSpaDi": "cospadi",
    "dense x sparse": "dsformer",
}
MASKED = {"Wanda 2:4": "wanda", "SparseGPT 2:4": "sparsegpt"}
BYTES_OF_2_4 = 0.5625
"""Half of the numbers, and one bit a number for which."""
LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
CONTEXT = 256


class Layer(NamedTuple):
    """One layer with its calibration: what its rows share."""

    site: Site
    weight: torch.Tensor
    stats: Callable[[], Stats]
    known: Mapping[str, Any]

    def record(
        self, method: Method, supports: Mapping[str, sw.Support], approximation: torch.Tensor, **own: Any
    ) -> Record:
        """Of an approximation of the weight, its error that of the outputs."""
        alone = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=False)
        error = relative_error(self.weight, approximation.detach(), self.stats())
        return record_of(method, supports, alone, value=error, **self.known, **own)

    def factorised(self, label: str, name: str, density: float | None) -> Row:
        """A form at a share of the dense bytes; None = as many as it takes."""
        method = sw.method(name) if density is None else sw.method(name, density=density)
        operator = sw.factorise_matrix(self.weight, method, stats=self.stats())
        share = operator.stored.words() / self.weight.numel()
        assert density is None or share <= density
        record = self.record(
            method, {}, operator.dense(), densities={self.site.name: share}, kept=operator.stored.numbers,
            inference_flops=float(operator.flops(1)), structure=getattr(method.form, "registered_name", ""),
            start="post-training", dynamic=False, when="after",  # fitted, whatever a method would train
        )  # fmt: skip
        return Row(label, round(share, 4) if density is None else density, record)

    def masked(self, label: str, name: str) -> Row:
        """A 2:4 mask."""
        method = sw.method(name, pattern="2:4")
        found, support = sw.prune_matrix(self.weight, method, stats=self.stats())
        return Row(label, BYTES_OF_2_4, self.record(method, {self.site.name: support}, found))


@torch.no_grad()
def product_line(case: str, n: int, rows: int, rounds: int) -> common.Line:
    """One Monarch product beside one dense product."""
    blocks = round(n**0.5)
    method = sw.method("monarch", form=Monarch(blocks))
    operator = method.form.start((n, n), method, 2 * blocks * n) if method.form else None
    assert operator is not None and operator.stored.numbers == 2 * blocks * n
    x, weight = torch.randn(rows, n), torch.randn(n, n)
    timings = measure.compare({"monarch": lambda: operator(x), "dense": lambda: F.linear(x, weight)}, rounds=rounds)
    bound = 1e6 * operator.flops(rows) / measure.ceilings().flops
    return common.line(case, timings, "monarch", "dense", bound)


def main() -> None:
    args = common.arguments(
        (__doc__ or "").split("\n")[0],
        model={"default": "sparseworks/tiny-lm", "help": "a decoder: folder or name"},
        calibration={"type": Path, "help": "text to calibrate on; default: documentation"},
        block={"type": int, "default": 2, "help": "which block's layers"},
        samples={"type": int, "default": 32, "help": "windows of 256 tokens to calibrate on"},
        seeds={"type": int, "default": 3, "help": "choices of calibration windows"},
        times=TIMES,
    )
    tokenizer, model = load_tokenizer(args.model), sw.load(args.model)
    name = Path(args.model).name if Path(args.model).is_dir() else args.model
    samples, seeds = (4, 1) if args.quick else (args.samples, args.seeds)
    text = args.calibration.name.partition(".")[0] if args.calibration else "documentation"
    windows = lm_windows(texts(args.calibration, held_out=False), tokenizer, CONTEXT)
    chosen = [
        s
        for s in sw.sites(model)
        if f"layers.{args.block}." in s.name and s.name.endswith(LAYERS[: 1 if args.quick else 4])
    ]
    rows = Rows("factors", {"model": name, "block": args.block, "text": text, "windows": samples}, quick=args.quick)

    @cache
    def gathered(seed: int) -> Mapping[str, Stats]:
        picked = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:samples]
        data = [{"input_ids": ids} for ids in windows[picked.sort().values].split(2)]
        return gather(model, chosen, frozenset({Gram, InputMoments}), data)

    for seed in range(0 if args.times else seeds):
        for site in chosen:
            short = site.name.partition(f"layers.{args.block}.")[2]
            known = {
                "task": f"{short} of {name}, block {args.block}", "metric": "relative output error", "higher_is_better": False,
                "epochs": 0, "examples": samples, "data": f"{samples} windows of {CONTEXT} tokens of {text}", "seed": seed,
            }  # fmt: skip
            layer = Layer(site, site.read(model), lambda s=seed, n=site.name: gathered(s)[n], known)
            for label, method in SIZED.items():
                for density in (0.7,) if args.quick else (0.7, 0.6, 0.5):
                    make = lambda f=layer, x=label, m=method, d=density: f.factorised(x, m, d)  # noqa: E731
                    rows.add(f"{short} {method} {density} {seed}", make)
            rows.add(f"{short} armor {seed}", lambda f=layer: f.factorised("ARMOR", "armor", None))
            for label, method in MASKED.items():
                rows.add(f"{short} {method} {seed}", lambda f=layer, x=label, m=method: f.masked(x, m))
    for n, tokens in [(1024, 64)] if args.quick else [(n, x) for n in (1024, 2304, 4096) for x in (1, 16, 256)]:
        case = f"{n} x {n}, {tokens} rows"
        rows.time(case, lambda n=n, x=tokens, c=case: product_line(c, n, x, args.rounds))
    rows.show()
    rows.store(None if args.times else args.json)


if __name__ == "__main__":
    main()

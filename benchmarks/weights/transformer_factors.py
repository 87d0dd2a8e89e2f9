"""What do factors and one-shot pruning leave of a transformer? Loss on the last twentieth of books read byte by byte.

The dense model is that of `nm_transformer.py`. Two questions, `--part`:
factors: it gets a third of its numbers, as factors that are trained on.
oneshot: it loses weights without training, 2:4 or 70 %.
The rate of the training is chosen on a seed of its own, and stands in rows of that seed.

    python benchmarks/weights/transformer_factors.py --text books.jsonl.gz --device cuda --json transformer_factors
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from byte_decoder import Decoder, train
from rows import Row
from transformer import TUNING, Bench, answer, in_blocks, parsed

import sparseworks as sw
from sparseworks.allocate import EvoPress
from sparseworks.core.method import Method
from sparseworks.weights.factors import DenseSparse, Factorised, Wrapped, close_factors, factorise, open_factors
from sparseworks.weights.train import Hold


def factors(rows: int) -> dict[str, Method]:
    """Forms at a third of the numbers: supports move, supports stay, low rank."""
    stf = sw.method("dsformer", density=1 / 3, form=DenseSparse(rows=rows))
    return {"STF": stf, "fitted, support held": stf.with_(train=Hold()), "SVD": sw.method("svd", density=1 / 3)}


RATES = (3e-4, 1e-3, 3e-3)
"""Peak rates tried for factors."""


class Factors(Bench):
    """Both questions."""

    def __init__(self, name: str, args: Any):
        super().__init__(name, args)
        self.fitted = cache(self._fitted)

    def factors(self) -> None:
        """Factors of the dense model, trained on."""
        rates = {f"rate {r:g}": r for r in RATES}
        chosen = {
            n: self.best(rates, lambda o, r, n=n, m=m: self.factored(f"{n}, {o}", m, r, TUNING))
            for n, m in factors(min(64, self.size.width // 2)).items()
        }
        for seed in range(self.args.seeds):
            for label, method in factors(min(64, self.size.width // 2)).items():
                self.factored(label, method, chosen[label][1], seed)

    def _fitted(self, seed: int, method: Method) -> tuple[Decoder, Factorised]:
        model = copy.deepcopy(self.dense(seed)).cpu().requires_grad_(True)
        return model, factorise(model, method, sites=in_blocks(model), progress=False)

    def factored(self, label: str, method: Method, rate: float, seed: int) -> float:
        """A row of `factors`."""

        def make() -> Row:
            model, made = copy.deepcopy(self.fitted(seed, method.with_(train=None)))
            model.to(self.args.device)
            fitted = self.text.loss(model)
            opened = method.train is not None
            if opened:
                open_factors(model)
            run = train(model, self.text, self.steps, seed, method if opened else None, rate=rate)
            if run is not None:
                close_factors(model, run.finish())
            structure = getattr(method.form, "registered_name", "")
            numbers = sum(o.stored.numbers for o in made.operators.values())
            own = {
                "task": f"next byte, {self.name}, factors", "data": f"{self.first} steps dense, then {self.steps}", "structure": structure,
                "densities": {r.name: r.share for r in made.rows}, "kept": numbers, "start": "dense-to-sparse", "when": "during",
                "dynamic": label.startswith("STF"), "inference_flops": float(sum(o.flops(1) for o in made.operators.values())),
                "more": {"rate": rate, "before": fitted},
            }  # fmt: skip
            return self.row(label, round(made.share, 3), model, seed, self.first + self.steps, method, {}, **own)

        return self.add(f"factors {label} {seed}", make)

    def oneshot(self) -> None:
        """2:4, and 70 % with shares by layer."""
        search = EvoPress.example() if self.quick else EvoPress(60, 16, ((4, 2048), (2, 8192)))
        sparsegpt = sw.method("sparsegpt")
        pruned = {
            "Wanda 2:4": sw.method("wanda", pattern="2:4"), "SparseGPT 2:4": sw.method("sparsegpt", pattern="2:4"),
            "SparseGPT": sparsegpt.with_(density=0.3), "SparseGPT + OWL": sparsegpt.with_(density=0.3, allocate="owl"),
            "SparseGPT + EvoPress": sparsegpt.with_(density=0.3, allocate=search),
        }  # fmt: skip
        for seed in range(self.args.seeds):
            self.add(f"oneshot dense {seed}", lambda s=seed: self.shot("dense", None, s))
            for block in (4,) if self.quick else (8, 32):
                method = sw.method("armor", form=Wrapped(block, 20 if self.quick else 1000))
                make = lambda s=seed, m=method, b=block: self.shot(f"ARMOR, blocks of {b}", m, s)  # noqa: E731
                self.add(f"oneshot armor {block} {seed}", make)
            for label, method in pruned.items():
                self.add(f"oneshot {label} {seed}", lambda s=seed, x=label, m=method: self.shot(x, m, s))

    def shot(self, label: str, method: Method | None, seed: int) -> Row:
        """A row of `oneshot`."""
        model, density, supports = copy.deepcopy(self.dense(seed)), 1.0, {}
        data = self.text.calibration(16 if self.quick else 128, seed)
        own: dict[str, Any] = {
            "task": f"next byte, {self.name}, one shot",
            "data": f"{self.first} steps dense; {len(data) * 8} windows seen",
        }
        if method is not None and method.form is not None:
            made = factorise(model, method, data, sites=in_blocks(model), progress=False)
            density = round(made.share, 3)
            own |= {
                "structure": getattr(method.form, "registered_name", ""), "densities": {r.name: r.share for r in made.rows},
                "kept": sum(o.stored.numbers for o in made.operators.values()), "start": "post-training", "when": "after",
                "dynamic": False, "inference_flops": float(sum(o.flops(1) for o in made.operators.values())),
                "more": {"error": sum(r.relative_error for r in made.rows) / len(made.rows)},
            }  # fmt: skip
        elif method is not None:
            done = sw.prune(model, method, data, sites=in_blocks(model), progress=False)
            supports, density = done.supports, method.pattern.fixed_density or 0.3
        return self.row(label, density, model, seed, self.first, method, supports, **own)


if __name__ == "__main__":
    answer("transformer_factors", Factors, parsed(__doc__ or "", ("factors", "oneshot")))

"""What do N:M trainings give on a transformer? Loss on the last twentieth of books read byte by byte.

The model has four blocks of width 256, three million weights; embedding, head and norms stay dense. Two questions, `--part`:
fade: trained from scratch with perceptrons of an N:M pattern (as the authors of progressive gradient flow did), in equal steps.
retrain: a trained dense model becomes 2:4 in all layers of its blocks, taught by itself.
What a method leaves open (a decay, when values have faded) is chosen on a seed of its own, and stands in rows of that seed.

    python benchmarks/weights/nm_transformer.py --text books.jsonl.gz --part fade --patterns 1:32 --device cuda --json fade_32
    python benchmarks/weights/nm_transformer.py --merge fade_32.json retrain.json --json nm_transformer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from byte_decoder import train
from rows import Row
from transformer import TUNING, Bench, answer, in_blocks, parsed

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.schedule import Exponential
from sparseworks.weights.train import AdamDecay, AdamShrink, FadePatterns, FadeValues, Straight

Options = Mapping[str, Method]
"""What is tried -> the method with it."""


def fading() -> dict[str, Options]:
    """Trainings from scratch. In the authors' settings values fade as exp(-11 t) over the run (1e-4 a step, 1.1e5 steps)."""
    exp, step, geo = sw.method("mdgf_exp"), sw.method("sdgf_stepwise"), sw.method("sdgf_geometric")
    return {
        "SR-STE": {f"decay {d:g}": sw.method("sr_ste", train=Straight(decay=d)) for d in (0.0, 2e-4, 2e-3)},
        "MdGf-exp": {
            "exp(-11 t)": exp.with_(schedule=Exponential(11.0), train=FadeValues(start=0.0, stop=1.0)),
            "until 0.3": exp.with_(train=FadeValues(start=0.0, stop=0.3)),
        },
        "MdGf-linear": {
            f"until {s:g}": sw.method("mdgf_linear", train=FadeValues(start=0.0, stop=s)) for s in (0.3, 0.6)
        },
        "SdGf-stepwise": {f"until {s:g}": step.with_(train=FadePatterns(start=0.0, stop=s)) for s in (0.4, 0.8)},
        "SdGf-geometric": {"until 0.5": geo.with_(train=FadePatterns(start=0.0, stop=0.5, ramp="geometric"))},
    }


def retraining() -> dict[str, Options]:
    """Trainings of a dense model, all of them taught by it."""
    return {
        "SR-STE": {f"decay {d:g}": sw.method("sr_ste", train=Straight(d, every=10)) for d in (2e-4, 2e-3, 1e-2)},
        "AST": {f"decay {d:g}": sw.method("ast", train=AdamDecay(decay=d)) for d in (2e-3, 6e-3, 2e-2, 6e-2, 2e-1)},
        "CAST": {f"decay {d:g}": sw.method("cast", train=AdamShrink(decay=d)) for d in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
    }


class Trainings(Bench):
    """Both questions."""

    def fade(self) -> None:
        """From scratch at each pattern, with the options that are best at the first."""
        chosen = self.tuned(fading(), self.args.patterns[0], self.from_scratch)
        for pattern in self.args.patterns:
            self.compared(chosen, pattern, self.from_scratch)

    def retrain(self) -> None:
        """2:4 from the dense model."""
        self.compared(self.tuned(retraining(), "2:4", self.from_dense), "2:4", self.from_dense)

    def tuned(
        self, listed: Mapping[str, Options], pattern: str, make: Callable[..., float]
    ) -> dict[str, tuple[str, Method]]:
        """The best option of each method."""
        chosen = {}
        for label, options in listed.items():
            trial = lambda n, m, x=label: make(f"{x}, {n}", m.with_(pattern=pattern), pattern, TUNING, n)  # noqa: E731
            chosen[label] = self.best(options, trial)
        return chosen

    def compared(self, chosen: Mapping[str, tuple[str, Method]], pattern: str, make: Callable[..., float]) -> None:
        """The dense model and all methods, seed by seed."""
        for seed in range(self.args.seeds):
            if f"{make.__name__} dense  {seed}" not in self.rows.journal:
                make("dense", None, "", seed, "")
            for label, (name, method) in chosen.items():
                make(label, method.with_(pattern=pattern), pattern, seed, name)

    def from_scratch(self, label: str, method: Method | None, pattern: str, seed: int, option: str) -> float:
        """A row of `fade`."""

        def make() -> Row:
            model = self.fresh(seed)
            sites = [s for s in sw.sites(model) if s.name.endswith(("up", "down"))]
            run = train(model, self.text, self.first, seed, method, sites=sites)
            supports = run.finish() if run else {}
            density = method.pattern.fixed_density or 1.0 if method else 1.0
            own = {
                "task": f"next byte, {self.name}, from scratch",
                "data": f"{self.first} steps",
                "more": {"option": option},
            }
            return self.row(label, density, model, seed, self.first, method, supports, **own)

        return self.add(f"from_scratch {label} {pattern} {seed}", make)

    def from_dense(self, label: str, method: Method | None, pattern: str, seed: int, option: str) -> float:
        """A row of `retrain`; `cut` is by how much the last cut raised the loss."""

        def make() -> Row:
            teacher = self.dense(seed)
            model = self.fresh(seed, teacher)
            run = train(
                model,
                self.text,
                self.steps,
                seed,
                method,
                rate=self.size.rate / 2,
                teacher=teacher,
                sites=in_blocks(model),
            )
            before = self.text.loss(model)
            supports = run.finish() if run else {}
            more = {"option": option, "cut": self.text.loss(model) / before - 1}
            own = {
                "task": f"next byte, {self.name}, retrained",
                "data": f"{self.first} steps dense, then {self.steps} taught",
                "more": more,
            }
            return self.row(
                label, 0.5 if method else 1.0, model, seed, self.first + self.steps, method, supports, **own
            )

        return self.add(f"from_dense {label} {pattern} {seed}", make)


if __name__ == "__main__":
    patterns = {"nargs": "+", "default": ["1:32", "1:16", "2:4"], "help": "of `fade`"}
    answer("nm_transformer", Trainings, parsed(__doc__ or "", ("fade", "retrain"), patterns=patterns))

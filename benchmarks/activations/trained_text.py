"""What do activations that are sparse in training cost a small language model?

Characters of the documentation, the last 16 predict the next; a residual net of two gated feed-forward layers (Q-Sparse) or of
layers with as many parameters (Spark). All train from scratch in equal steps on equal batches; "continued" starts from the dense
model and has the same steps again, as does the dense model beside it. The figure is the loss of a held-out tenth, in nats a character.

    python benchmarks/activations/trained_text.py --threads 1 --steps 300 --json trained_text
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from small import row, store  # isort: skip  it sets the path of those below
from common import arguments, table
from rows import Row, Rows
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.activations.trained import (
    BlockTopKInputs,
    Neurons,
    SparkFeedForward,
    SquaredReluGlu,
    TopKInputs,
    TopKNeurons,
    train_sparse,
)
from sparseworks.evaluate import documentation_passages, fit_activation_law

CONTEXT, BATCH, RATE = 16, 128, 3e-3


class Characters(nn.Module):
    """The last characters -> logits of the next."""

    def __init__(self, vocabulary: int, layer: Callable[[int], nn.Module], width: int = 128, depth: int = 2):
        super().__init__()
        self.embed, self.enter = nn.Embedding(vocabulary, 16), nn.Linear(CONTEXT * 16, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers = nn.ModuleList(layer(width) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(self.embed(ids).flatten(1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


class Text:
    """Windows of a text; the last tenth is held out."""

    def __init__(self, text: str):
        letters = {c: i for i, c in enumerate(sorted(set(text)))}
        ids = torch.tensor([letters[c] for c in text])
        self.vocabulary, cut = len(letters), len(ids) * 9 // 10
        self.train, rest = ids[:cut], ids[cut:]
        self.held = self._at(rest, torch.linspace(0, len(rest) - CONTEXT - 1, 8192).long())

    def batch(self, g: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._at(self.train, torch.randint(0, len(self.train) - CONTEXT, (BATCH,), generator=g))

    def _at(self, ids: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        windows = ids[at[:, None] + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, -1]


def train(model: nn.Module, text: Text, steps: int, seed: int) -> float:
    """AdamW, a short warm-up and a cosine; the held-out loss."""
    optimizer, g = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0), torch.Generator().manual_seed(seed)
    rate = lambda t: min(1.0, (t + 1) / 30) * (0.05 + 0.475 * (1 + math.cos(math.pi * t / steps)))  # noqa: E731
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(steps):
        ids, following = text.batch(g)
        optimizer.zero_grad()
        F.cross_entropy(model(ids), following).backward()
        optimizer.step()
        plan.step()
    with torch.no_grad():
        return float(F.cross_entropy(model(text.held[0]), text.held[1]))


INPUTS = {
    "dense": None,
    "qsparse, 40 % zeros": TopKInputs(share=0.6),
    "qsparse, 60 % zeros": TopKInputs(share=0.4),
    "qsparse, 80 % zeros": TopKInputs(share=0.2),
    "masked gradient, 60 % zeros": TopKInputs(share=0.4, backward="kept"),
    "masked gradient, 80 % zeros": TopKInputs(share=0.2, backward="kept"),
    "qsparse, 60 % zeros, not rescaled": TopKInputs(share=0.4, scale="none"),
    "qsparse, 60 % zeros, 8 bits": TopKInputs(share=0.4, bits=8),
    "block_qsparse, 62.5 % zeros": BlockTopKInputs(keep=12, of=32),
}
HIDDEN = 256


def ungated(act: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Two matrices and a nonlinearity, of as many parameters as a Spark layer."""
    return lambda w: nn.Sequential(nn.Linear(w, HIDDEN, bias=False), act(), nn.Linear(HIDDEN, w, bias=False))


LAYERS: dict[str, tuple[float, Callable[[int], nn.Module]]] = {
    "GELU": (1.0, ungated(nn.GELU)),
    "spark_ffn": (0.08, lambda w: SparkFeedForward(w, HIDDEN)),
    "top-k without predictor": (0.08, ungated(lambda: Neurons(TopKNeurons(round(0.08 * HIDDEN))))),
}


def inputs(text: Text, name: str, seed: int, steps: int) -> list[Row]:
    """From scratch, and for two of them continued from the dense model."""
    activation = INPUTS[name]
    method = "dense" if activation is None else name.partition(",")[0].replace("masked gradient", "qsparse")
    measured = _measured("gated layers", steps, text, seed)

    def prepared(model: nn.Module) -> nn.Module:
        return model if activation is None else train_sparse(model, sw.method(method, activation=activation))

    torch.manual_seed(seed)
    model = Characters(text.vocabulary, lambda w: SquaredReluGlu(w, HIDDEN))
    density = 1.0 if activation is None else activation.keep / activation.of if isinstance(activation, BlockTopKInputs) else activation.share  # fmt: skip
    return [row(name, density, model, method=method, value=train(prepared(model), text, steps, seed), **measured)]


def continued(text: Text, seed: int, steps: int) -> list[Row]:
    """A dense model, as many steps more: dense, and with 60 % of its inputs zero; and that without more steps."""
    torch.manual_seed(seed)
    dense = Characters(text.vocabulary, lambda w: SquaredReluGlu(w, HIDDEN))
    train(dense, text, steps, seed)
    measured = _measured("gated layers, from a dense model", 2 * steps, text, seed)
    sparse = train_sparse(copy.deepcopy(dense), sw.method("qsparse", activation=TopKInputs(share=0.4, scale="same")))
    with torch.no_grad():
        before = float(F.cross_entropy(sparse(text.held[0]), text.held[1]))
    return [
        row("dense", 1.0, dense, method="dense", value=train(dense, text, steps, seed + 100), **measured),
        row(
            "qsparse, 60 % zeros",
            0.4,
            sparse,
            method="qsparse",
            value=train(sparse, text, steps, seed + 100),
            **{**measured, "more": {"before more training": before}},
        ),
    ]


def layers(text: Text, name: str, seed: int, steps: int) -> list[Row]:
    """Feed-forward layers of equal parameters."""
    density, layer = LAYERS[name]
    torch.manual_seed(seed)
    model = Characters(text.vocabulary, layer)
    value = train(model, text, steps, seed)
    method = {"GELU": "dense", "spark_ffn": "spark_ffn"}.get(name, "topk_transformer")
    share = (128 * HIDDEN * (1.0 if name != "spark_ffn" else 0.5) + density * HIDDEN * 128 * (1.0 if name != "spark_ffn" else 1.5)) / (2 * 128 * HIDDEN)  # fmt: skip
    measured = _measured("ungated layers", steps, text, seed)
    return [
        row(name, density, model, method=method, value=value, **{**measured, "more": {"weights read, share": share}})
    ]


def _measured(task: str, steps: int, text: Text, seed: int) -> dict:
    return {
        "task": f"next character, {task}", "metric": "nats a character", "higher_is_better": False, "seed": seed,
        "epochs": steps * BATCH / len(text.train), "examples": len(text.train), "data": "documentation",
    }  # fmt: skip


def law(text: Text, steps: int, widths: tuple[int, ...]) -> list[dict]:
    """Loss over sparsity and size, one seed: the coefficients of the law and the sparsity it calls best at equal activated parameters."""
    runs = []
    for width in widths:
        for zeros in (0.0, 0.4, 0.6, 0.8):
            torch.manual_seed(0)
            model = Characters(text.vocabulary, lambda w: SquaredReluGlu(w, 2 * w), width)
            if zeros:
                train_sparse(model, sw.method("qsparse", activation=TopKInputs(share=1 - zeros)))
            size = sum(p.numel() for p in model.layers.parameters())
            runs.append((zeros, float(size), train(model, text, steps, 0)))
    found = fit_activation_law(*zip(*runs, strict=True))
    entry = {name: round(getattr(found, name), 4) for name in ("e", "b", "c", "beta", "alpha", "error")}
    return [{**entry, "best sparsity": found.best_sparsity(), "runs": len(runs)}]


def main() -> None:
    args = arguments(
        (__doc__ or "").split("\n")[0],
        seeds={"type": int, "default": 3, "help": "repetitions"},
        steps={"type": int, "default": 300, "help": "of training"},
    )
    steps, seeds = (5, 1) if args.quick else (args.steps, args.seeds)
    text = Text("\n".join(p.whole for p in documentation_passages(held_out=False))[: 20_000 if args.quick else 400_000])
    rows = Rows("trained_text", {"steps": steps, "batch": BATCH, "characters": len(text.train)}, quick=args.quick)
    for seed in range(seeds):
        for name in INPUTS:
            rows.add(f"{name} {seed}", lambda n=name, s=seed: inputs(text, n, s, steps))
        rows.add(f"continued {seed}", lambda s=seed: continued(text, s, steps))
        for name in LAYERS:
            rows.add(f"layer {name} {seed}", lambda n=name, s=seed: layers(text, n, s, steps))
    rows.show()
    tables = {"law of sparse activations": law(text, steps, (8, 16) if args.quick else (32, 64, 128))}
    for title, lines in tables.items():
        table(title, list(lines[0]), [list(entry.values()) for entry in lines])
    store(rows, args.json, tables=tables)


if __name__ == "__main__":
    main()

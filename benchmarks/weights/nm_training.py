"""How much does N:M training lose at which N:M, method by method, in equal steps?

The model is a character-level language model: the embeddings of the last 16 characters, two hidden layers, which become N:M,
and a head, which stays dense. Every method starts from the same dense model and has the same steps on the same batches; AST
and CAST learn from the dense model too, as they prescribe, and beside them SR-STE does. BDWP's second mask lies on the outputs.
The figure is the mean loss of a held-out tenth, in nats a character.

    python benchmarks/weights/nm_training.py --text tinyshakespeare.txt.gz --threads 1 --json nm_training
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments
from rows import Row, Rows, forward_flops, record_of

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.evaluate import documentation_passages, read_texts
from sparseworks.weights.settings import TrainingFlops
from sparseworks.weights.train import AdamDecay, AdamShrink, FadePatterns, FadeValues, Straight

CONTEXT, EMBEDDING, WIDTH, BATCH, RATE = 16, 16, 256, 128, 2e-3
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
ONE_SHOT = "magnitude, one shot"
DENSE = "dense, as many steps more"


def methods(steps: int) -> dict[str, tuple[Method | None, bool]]:
    """Name -> (method, whether the dense model teaches)."""
    # The decays are per step; papers have 10^4 to 10^6 steps, so SR-STE's is what that many times the published one would do here.
    # Those inside Adam are the best of 6e-4 to 0.2 and of 2e-3 to 0.15, at 2:4 and 1:8 on a seed of their own.
    decay = min(1.0 / steps, 5e-3)
    return {
        DENSE: (None, False),
        "STE": (sw.method("ste"), False),
        "SR-STE": (sw.method("sr_ste", train=Straight(decay=decay)), False),
        "MdGf-linear": (sw.method("mdgf_linear", train=FadeValues(start=0.0, stop=0.5)), False),
        "MdGf-exp": (sw.method("mdgf_exp", train=FadeValues(start=0.0, stop=0.5)), False),
        "SdGf-stepwise": (sw.method("sdgf_stepwise", train=FadePatterns(start=0.0, stop=0.5)), False),
        "SdGf-geometric": (
            sw.method("sdgf_geometric", train=FadePatterns(start=0.0, stop=0.5, ramp="geometric")),
            False,
        ),
        "BDWP": (sw.method("bdwp"), False),
        "SR-STE, taught": (sw.method("sr_ste", train=Straight(decay=decay)), True),
        "AST, taught": (sw.method("ast", train=AdamDecay(decay=6e-2)), True),
        "CAST, taught": (sw.method("cast", train=AdamShrink(decay=5e-2)), True),
    }


class Characters(nn.Module):
    """The last characters -> logits of the next."""

    def __init__(self, vocabulary: int, width: int = WIDTH):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, EMBEDDING)
        self.hidden = nn.Sequential(
            nn.Linear(CONTEXT * EMBEDDING, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(self.embed(ids).flatten(1)))


class Text:
    """Windows of a text: the last tenth is held out."""

    def __init__(self, name: str, text: str, windows: int):
        self.name = name
        letters = {c: i for i, c in enumerate(sorted(set(text)))}
        ids = torch.tensor([letters[c] for c in text])
        self.vocabulary, cut = len(letters), len(ids) * 9 // 10
        self.train, rest = ids[:cut], ids[cut:]
        at = torch.linspace(0, len(rest) - CONTEXT - 1, windows).long()
        self.held = self._at(rest, at)

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        return self._at(self.train, torch.randint(0, len(self.train) - CONTEXT, (BATCH,), generator=g))

    def _at(self, ids: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        windows = ids[at[:, None] + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, -1]

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Nats a character on the held-out part."""
        return float(F.cross_entropy(model(self.held[0]), self.held[1]))


def trained(
    model: nn.Module, text: Text, steps: int, seed: int, method: Method | None = None, teacher: nn.Module | None = None
) -> tuple[Mapping[str, sw.Support], float | None]:
    """`steps` of AdamW, the rate warmed up and let down by a cosine to a tenth; the supports found, and FLOPs.

    Values that fade out take part as long as they are there, which supports do not tell.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    run = None
    if method is not None:
        run = sw.Sparsifier(model, method, optimizer, steps=steps, skip=["head", "embed"])
    flops = TrainingFlops(model if run is None else run, 1.0)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((i + 1) / (0.05 * steps), 0.55 + 0.45 * math.cos(math.pi * i / steps))
        ids, labels = text.batch(seed * 1_000_003 + i)
        logits = model(ids)
        loss = F.cross_entropy(logits, labels)
        if teacher is not None:
            with torch.no_grad():
                wanted = F.log_softmax(teacher(ids), -1)
            loss = loss / 3 + 2 / 3 * F.kl_div(
                F.log_softmax(logits, -1), wanted, log_target=True, reduction="batchmean"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.step()
    flops.close()
    total = flops.total + (steps * forward_flops(teacher, text.batch(0)[0]) if teacher is not None else 0.0)
    faded = method is not None and isinstance(method.train, FadeValues)
    return run.finish() if run is not None else {}, None if faded else total


def main() -> None:
    args = arguments(
        (__doc__ or "").split("\n")[0],
        text={"type": Path, "help": "text to train and measure on (.txt, .jsonl, also .gz); default: documentation"},
        seeds={"type": int, "default": 3, "help": "repetitions"},
        first={"type": int, "default": 1500, "help": "steps of the dense model"},
        steps={"type": int, "default": 400, "help": "steps of every method"},
    )
    seeds, first, steps = (1, 40, 30) if args.quick else (args.seeds, args.first, args.steps)
    found = (
        read_texts(args.text, paragraphs=False)
        if args.text
        else [p.whole for p in documentation_passages(held_out=False)]
    )
    name = args.text.name.partition(".")[0] if args.text else "documentation"
    text = Text(name, "\n".join(found), 512 if args.quick else 8192)
    setting = {"text": name, "characters": len(text.train), "first": first, "steps": steps, "width": WIDTH}
    rows = Rows("nm_training", setting, quick=args.quick)

    @cache
    def dense(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Characters(text.vocabulary)
        trained(model, text, first, seed + 100)
        return model

    def row(
        label: str, method: Method | None, supports: Mapping[str, sw.Support], model: nn.Module, seed: int, more: int,
        flops: float | None = 0.0,
    ) -> Row:  # fmt: skip
        parent = 3 * first * forward_flops(dense(seed), text.batch(0)[0])
        record = record_of(
            method, supports, model, task=f"next character, {text.name}", metric="nats a character", value=text.loss(model),
            higher_is_better=False, epochs=(first + more) * BATCH / len(text.train), examples=len(text.train),
            data=f"{first} steps dense, then {more} steps, on {len(text.train):,} characters", seed=seed,
            training_flops=None if flops is None else parent + flops,
        )  # fmt: skip
        return Row(label, 1.0 if method is None else method.pattern.fixed_density or 1.0, record)

    def one_shot(pattern: str, seed: int) -> Row:
        model, method = copy.deepcopy(dense(seed)), sw.method("magnitude", pattern=pattern)
        supports = sw.prune(model, method, skip=["head", "embed"], progress=False).supports
        return row(ONE_SHOT, method, supports, model, seed, 0)

    def after(label: str, method: Method | None, taught: bool, seed: int) -> Row:
        model = copy.deepcopy(dense(seed))
        supports, flops = trained(model, text, steps, seed, method, dense(seed) if taught else None)
        return row(label, method, supports, model, seed, steps, flops)

    for seed in range(seeds):
        rows.add(f"dense {seed}", lambda s=seed: row("dense", None, {}, dense(s), s, 0))
        for pattern in PATTERNS:
            rows.add(f"{ONE_SHOT} {pattern} {seed}", lambda p=pattern, s=seed: one_shot(p, s))
        for label, (method, taught) in methods(steps).items():
            for pattern in PATTERNS if method is not None else ("",):
                chosen = method.with_(pattern=pattern) if method is not None else None
                make = lambda n=label, m=chosen, t=taught, s=seed: after(n, m, t, s)  # noqa: E731
                rows.add(f"{label} {pattern} {seed}", make)
    rows.show()
    rows.store(args.json)


if __name__ == "__main__":
    main()

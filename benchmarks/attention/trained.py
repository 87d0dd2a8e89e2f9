"""Which trained forms of sparse attention learn to find what is far away, at equal training and about equal density?

A small decoder is trained from nothing to find one thing in filler and say what it is. `needle` is one mark of ten kinds, which one layer
can find; `mqar` is associative recall, pairs of two tokens of which one is asked for, which takes two layers; `early` has the mark
in the first 20 tokens and asks for it at each of the last 16. All forms have the same steps, batches and learning rate; a
window that sees as many keys is the baseline. Rows: loss and accuracy on held-out rows, density (pairs over allowed pairs), FLOPs of the
pairs (forward, a row, all layers: 4 d a pair and head).

    OMP_NUM_THREADS=1 python benchmarks/attention/trained.py --threads 1 --steps 150 --seeds 3 --tasks needle --json benchmarks/results/attention/trained
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.attention.trained import Gate, attach, training
from sparseworks.evaluate.sequences import mqar

KINDS = 10
WIDTH, HEADS, D = 64, 4, 16
FORMS = {
    "dense": None,
    "window": ("dma", {"keep": 12}),  # its bias replaced by a window of as many keys
    "window of 33": ("dma", {"keep": 33}),  # as many pairs as NSA
    "dma": ("dma", {"keep": 12}),
    "nosa": ("nosa", {"block": 4, "keep": 5, "aware": 2, "local": 1, "span": 4, "stride": 2}),
    "nsa": ("nsa", {"block": 4, "keep": 4, "local": 1, "span": 4, "stride": 4, "window": 4}),
    "nsa, nothing chosen": ("nsa", {"block": 4, "keep": 2, "local": 1, "span": 4, "stride": 4, "window": 4}),
    "mosa": ("mosa", {"heads": 12, "dense": 1, "ratio": 4.0}),
}


@dataclass(frozen=True)
class Row:
    """One training."""

    method: str
    task: str
    seed: int
    loss: float
    accuracy: float
    density: float
    flops: float
    seconds: float


def needle(rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows with one mark (16 + kind) in filler (from 60), a question (2) at the end, and its answer (3 + kind), for the last token."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, 96, (rows, length), generator=g)
    kind = torch.randint(0, KINDS, (rows,), generator=g)
    ids[torch.arange(rows), torch.randint(1, length - 12, (rows,), generator=g)] = 16 + kind
    ids[:, 0], ids[:, -1] = 0, 2
    return ids, 3 + kind[:, None]


def early(rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows with one mark among the first 20 tokens; its name is the answer at each of the last 16."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, 96, (rows, length), generator=g)
    kind = torch.randint(0, KINDS, (rows,), generator=g)
    ids[torch.arange(rows), torch.randint(1, 21, (rows,), generator=g)] = 16 + kind
    ids[:, 0] = 0
    return ids, (3 + kind)[:, None].expand(-1, 16)


def recall(rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """The last of four questions of `mqar`."""
    ids = mqar(rows, length + 1, pairs=4, turns=1, gathered=False, seed=seed).ids
    return ids[:, :-1], ids[:, -1:]


TASKS = {"needle": (needle, 1), "early": (early, 1), "mqar": (recall, 2)}


def run(form: str, task: str, seed: int, steps: int, length: int = 48) -> Row:
    """One training and its figures."""
    draw, layers = TASKS[task]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=layers, num_attention_heads=HEADS,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None,
        )
    )  # fmt: skip
    named = FORMS[form]
    attached = None if named is None else attach(model, sw.method(named[0], **named[1]))
    gates = [] if attached is None else [m for m in attached.modules.values() if isinstance(m, Gate)]
    if form.startswith("window") and named is not None:
        near = torch.ones(length, length).tril().triu(1 - int(named[1]["keep"])) > 0
        for gate in gates:
            gate.bias = lambda heads: torch.where(near, 0.0, -torch.inf)[None, None]  # type: ignore[method-assign]
    optimiser, started = torch.optim.Adam(model.parameters(), 3e-3), time.process_time()
    with training(attached) if attached is not None and gates else nullcontext():
        for step in range(steps):
            ids, wanted = draw(32, length, 10_000 * seed + step)
            logits = model(ids, use_cache=False, logits_to_keep=wanted.shape[1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ids, wanted = draw(512, length, 10**8 + seed)
        model.eval()
        with torch.no_grad():
            logits = model(ids, use_cache=False, logits_to_keep=wanted.shape[1]).logits
    density = 1.0 if attached is None else attached.density
    heads = HEADS if form != "mosa" or named is None else named[1]["heads"] + named[1]["dense"]
    flops = density * layers * heads * 4 * D * length * (length + 1) / 2
    accuracy = float((logits.argmax(-1) == wanted).float().mean())
    return Row(
        form,
        task,
        seed,
        float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten())),
        accuracy,
        density,
        flops,
        time.process_time() - started,
    )


def main() -> None:
    """All forms, tasks and seeds."""
    args = arguments(
        __doc__ or "",
        steps={"type": int, "default": 150, "help": "of every training"},
        seeds={"type": int, "default": 3, "help": "how many"},
        tasks={"nargs": "+", "default": list(TASKS), "choices": list(TASKS), "help": "what is learned"},
        forms={"nargs": "+", "default": list(FORMS), "choices": list(FORMS), "help": "what attends"},
    )
    steps, seeds = (3, 1) if args.quick else (args.steps, args.seeds)
    rows = []
    for task in args.tasks:
        for form in args.forms:
            for seed in range(seeds):
                rows.append(run(form, task, seed, steps))
                r = rows[-1]
                print(
                    f"{task} {form} {seed}: {r.accuracy:.3f} {r.loss:.3f} density {r.density:.2f} {r.seconds:.1f} s",
                    flush=True,
                )
    head = ("method", "task", "seed", "loss", "accuracy", "density", "FLOPs", "CPU s")
    cells = [(r.method, r.task, r.seed, f"{r.loss:.3f}", f"{r.accuracy:.3f}", f"{r.density:.2f}", f"{r.flops:.3g}", f"{r.seconds:.0f}") for r in rows]  # fmt: skip
    table("Trained sparse attention on recall", head, [tuple(map(str, c)) for c in cells])
    store("trained sparse attention", rows, args.json, steps=steps)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

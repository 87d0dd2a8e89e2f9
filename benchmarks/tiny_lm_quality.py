"""What does each method cost a small decoder in perplexity, and do the orders of the literature hold on it?

The model is `sparseworks/tiny-lm`, the context 512 tokens. It was trained on documentation too, so the default text shows what
pruning costs, not how well the model generalises; give a text that it never saw with `--text`. A run that was cut off goes
on where it stopped.

    python benchmarks/tiny_lm_quality.py --text wiki.test.txt.gz --calibration wiki.valid.txt.gz --threads 2 --json tiny_lm_quality
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import arguments, store, table
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.evaluate import Perplexity, documentation_passages, lm_batches, read_texts
from sparseworks.evaluate.text import lm_stream
from sparseworks.exec.ceilings import read_json, write_json
from sparseworks.exec.race import build
from sparseworks.io import load_tokenizer

MODEL, CONTEXT = "sparseworks/tiny-lm", 512
DENSE = "dense"
FITTED = " + least squares"
MASKS = {"magnitude": "magnitude", "Wanda": "wanda", "random": "random", "OBS": "obs"}
"""Name -> method that chooses the mask, compared within rows so that the masks differ in nothing but the score."""

Claim = tuple[str, ...]
"""Cases with `<` or `<=` between them, the lowest perplexity first."""

CLAIMS: tuple[Claim, ...] = (
    (DENSE, "<", "50 % SparseGPT", "<=", "50 % Wanda", "<", "50 % magnitude per tensor"),
    ("50 % Wanda", "<", "50 % magnitude per row"),
    (DENSE, "<", "2:4 SparseGPT", "<=", "2:4 Wanda", "<", "2:4 magnitude"),
    ("70 % Wanda, OWL", "<", "70 % Wanda"),
    ("70 % SparseGPT, OWL", "<", "70 % SparseGPT"),
    *((f"50 % {mask} mask{FITTED}", "<", f"50 % {mask} mask") for mask in MASKS),
)


def cases() -> dict[str, Method | None]:
    """Name -> method; None is the dense model."""
    found: dict[str, Method | None] = {
        DENSE: None,
        "50 % magnitude per tensor": sw.method("magnitude"),
        "50 % magnitude per row": sw.method("magnitude_row"),
        "50 % Wanda": sw.method("wanda"),
        "50 % SparseGPT": sw.method("sparsegpt"),
    }
    for title, name in {"magnitude": "magnitude", "Wanda": "wanda", "SparseGPT": "sparsegpt"}.items():
        found[f"2:4 {title}"] = sw.method(name, pattern="2:4")
    for title, name in {"Wanda": "wanda", "SparseGPT": "sparsegpt"}.items():
        found[f"70 % {title}"] = sw.method(name, density=0.3)
        found[f"70 % {title}, OWL"] = sw.method(name, density=0.3, allocate="owl")
    for title, name in MASKS.items():
        found[f"50 % {title} mask"] = sw.method(name, pattern="row", repair="none")
        found[f"50 % {title} mask{FITTED}"] = sw.method(name, pattern="row", repair="least_squares")
    return found


def one(dense: nn.Module, method: Method | None, data: Sequence[Any], task: Perplexity) -> dict[str, Any]:
    """Perplexity of a pruned copy, its density, and seconds of pruning."""
    model, density, started = copy.deepcopy(dense), 1.0, time.perf_counter()
    if method is not None:
        supports = sw.prune(model, method, data, progress=False).supports.values()
        density = sum(s.count for s in supports) / sum(s.size for s in supports)
    seconds = time.perf_counter() - started
    return {"perplexity": task(model).value, "density": density, "seconds": seconds}


def measured(
    methods: Mapping[str, Method | None], dense: nn.Module, data: Sequence[Any], task: Perplexity, kept: Path
) -> dict[str, dict[str, Any]]:
    """Every case; those that equal another (same composition) are computed once, those in `kept` are not computed again."""
    found = read_json(kept)
    for name, method in methods.items():
        text = "dense" if method is None else method.composition
        if text not in found:
            found[text] = one(dense, method, data, task)
            write_json(kept, found)
        print(f"{name:<40} {found[text]['perplexity']:9.3f}  {found[text]['seconds']:6.1f} s", flush=True)
    return {name: found["dense" if m is None else m.composition] for name, m in methods.items()}


def judged(claim: Claim, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A claim beside its perplexities; it holds if every neighbour is in order."""
    values = [found[name]["perplexity"] for name in claim[::2]]
    pairs = zip(values, claim[1::2], values[1:], strict=False)
    holds = all(a < b if sign == "<" else a <= b for a, sign, b in pairs)
    signs = [f" {sign} " for sign in claim[1::2]] + [""]
    return {
        "order": " ".join(claim),
        "found": "".join(f"{value:.2f}{sign}" for value, sign in zip(values, signs, strict=True)),
        "holds": holds,
    }


def texts(path: Path | None, *, held_out: bool) -> list[str]:
    """The file as one text (a `.jsonl`: one per record), or documentation."""
    if path is None:
        return [p.whole for p in documentation_passages(held_out=held_out)]
    return read_texts(path, paragraphs=False)


def kept_file(args: Namespace, data: Sequence[Any], task: Perplexity) -> Path:
    """Where the figures of this very run are kept until it ends: same texts, same sizes, same code."""
    digest = hashlib.sha256(build().encode())
    for ids in (task.tokens, *(batch["input_ids"] for batch in data)):
        digest.update(ids.numpy().tobytes())
    return args.work / f"tiny-lm-{digest.hexdigest()[:16]}.json"


def report(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Print both tables; the claims come back."""
    dense = found[DENSE]["perplexity"]
    rows = [
        (
            name,
            f"{f['perplexity']:.3f}",
            f"{f['perplexity'] / dense:.3f}x",
            f"{f['density']:.3f}",
            f"{f['seconds']:.1f}",
        )
        for name, f in found.items()
    ]
    table(f"{MODEL}, context {CONTEXT}", ("case", "perplexity", "over dense", "density", "seconds"), rows)
    claims = [judged(claim, found) for claim in CLAIMS]
    lines = [(c["order"], c["found"], "holds" if c["holds"] else "does not hold") for c in claims]
    table("wanted order (lowest perplexity first)", ("order", "found", ""), lines)
    return claims


def main() -> None:
    args = arguments(
        __doc__ or "",
        text={"type": Path, "help": "text to measure on (.txt, .jsonl, also .gz); default: held-out documentation"},
        calibration={"type": Path, "help": "text to calibrate on; default: the other part of the documentation"},
        windows={"type": int, "default": 64, "help": f"windows of {CONTEXT} tokens to measure on"},
        samples={"type": int, "default": 64, "help": f"windows of {CONTEXT} tokens to calibrate on"},
        work={"type": Path, "default": Path(tempfile.gettempdir()), "help": "where a cut-off run is kept"},
    )
    windows, samples = (2, 8) if args.quick else (args.windows, args.samples)
    tokenizer, dense = load_tokenizer(MODEL), sw.load(MODEL)
    data = lm_batches(texts(args.calibration, held_out=False), tokenizer, CONTEXT, samples, batch=4)
    stream = lm_stream(texts(args.text, held_out=True), tokenizer)[: windows * CONTEXT]
    task = Perplexity(stream, CONTEXT)
    kept = kept_file(args, data, task)
    with torch.no_grad():
        found = measured(cases(), dense, data, task, kept)
    claims = report(found)
    setting = {
        "text": args.text.name if args.text else "held-out documentation",
        "calibration": args.calibration.name if args.calibration else "documentation",
        "evaluation tokens": len(stream),
        "calibration tokens": sum(batch["input_ids"].numel() for batch in data),
    }
    store("tiny_lm_quality", [], args.json, setting=setting, perplexity=found, claims=claims)
    kept.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

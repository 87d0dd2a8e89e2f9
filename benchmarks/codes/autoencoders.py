"""Which autoencoder explains the activations of a small decoder best at equal L0, how many of its latents are dead, and what does splicing cost?

Activations are those of a middle layer of `sparseworks/tiny-lm` (trained here) on books, or on the documentation without `--data`. The last
part of the text is never trained on: explained variance and dead latents are of its tokens, and `recovered` is the share of the cross-entropy
between the layer at 0 and the model's own that is left when the layer's output is the reconstruction. Methods run as registered but for k;
learned thresholds begin at 0.1 with pseudo-gradients 0.2 wide, since training is short. Methods are held against TopK at the L0 they came to.
Where one autoencoder serves several budgets it is trained once and cut. A run that was cut off goes on where it stopped.

    OMP_NUM_THREADS=1 python benchmarks/codes/autoencoders.py --threads 1 --data books.jsonl.gz --json autoencoders
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from common import RESULTS, arguments, table
from rows import Row, Rows, hardware  # pyright: ignore[reportMissingImports]
from tiny_lm_text import read_books  # pyright: ignore[reportMissingImports]

import sparseworks as sw
from sparseworks.codes.autoencoders import AutoencoderMethod, Batch, ce_recovered
from sparseworks.codes.autoencoders import Rows as Activations
from sparseworks.codes.autoencoders.metrics import measure
from sparseworks.codes.autoencoders.splice import hooked
from sparseworks.codes.autoencoders.stream import passes
from sparseworks.core.record import Record
from sparseworks.evaluate import documentation_passages
from sparseworks.evaluate.text import lm_stream, read_texts
from sparseworks.io import load_tokenizer

MODEL, SITE, LENGTH, BATCH, RATE = "sparseworks/tiny-lm", "model.layers.2", 256, 256, 1e-3
SPLICED = 8
"""Windows that the cross-entropy is measured on."""
TOPK, NESTED, PURSUIT = "topk_sae", "hierarchical_topk", "mp_sae"
CLAIMS = {"jumprelu_sae": TOPK, "gated_sae": TOPK, "batch_topk_sae": TOPK, NESTED: TOPK, PURSUIT: TOPK}
"""Which method is said to explain no less than which at equal L0."""


@dataclass(frozen=True)
class Text:
    """A decoder and what it makes of a text: activations to train on, windows of ids and their activations that are held out."""

    model: nn.Module
    train: Activations
    windows: Tensor
    held: Tensor


def text(path: Path | None, tokens: int, held: int) -> Text:
    """The first `tokens` of the text's windows, spread over all of it, and `held` windows of its last tenth."""
    model, tokenizer = sw.load(MODEL).float().eval(), load_tokenizer(MODEL)
    windows = _ids(path, tokenizer)
    windows = windows[: len(windows) // LENGTH * LENGTH].view(-1, LENGTH)
    cut = len(windows) * 9 // 10
    some = lambda part, n: part[torch.linspace(0, len(part) - 1, min(n, len(part))).long()]  # noqa: E731
    own, rest = some(windows[:cut], max(tokens // LENGTH, 1)), some(windows[cut:], held)
    return Text(model, Activations(activations(model, own)), rest, activations(model, rest))


def _ids(path: Path | None, tokenizer: Any) -> Tensor:
    if path is None:
        return lm_stream([p.whole for p in documentation_passages(held_out=False)], tokenizer)
    if ".jsonl" in path.suffixes:  # an equal share of each book is enough
        return lm_stream([book[20_000:320_000] for book in read_books(path).values()], tokenizer)
    return lm_stream(read_texts(path, paragraphs=False), tokenizer)


@torch.no_grad()
def activations(model: nn.Module, windows: Tensor) -> Tensor:
    """What leaves the site, one token a row; the first of a window is left out, since its norm is like no other's."""
    seen: list[Tensor] = []
    with hooked(model, SITE, lambda x: seen.append(x[:, 1:].flatten(0, 1))):
        for part in windows.split(16):
            model(part)
    return torch.cat(seen)


def method(name: str, k: int) -> AutoencoderMethod:
    """A registered method with k latents a token."""
    if name == "jumprelu_sae":
        return sw.method(name, l0=float(k), bandwidth=0.2, threshold=0.1)
    return sw.method(name, l0=float(k)) if name == "gated_sae" else sw.method(name, k=k)


def rows_of(data: Text, name: str, k: int, ks: tuple[int, ...], seed: int, width: int, steps: int) -> Iterator[Row]:
    """Train one autoencoder for k latents and measure it at each of `ks`."""
    began = time.perf_counter()
    sae = sw.train_autoencoders(
        data.train, [method(name, k)], width=width, steps=steps, batch=BATCH, seed=seed, lr=RATE, warmup=0.1
    )[0]
    seconds = time.perf_counter() - began
    if sae.rule.across:
        sae = sae.export(passes(data.train, BATCH, 40))
    for kept in ks:
        found = sae if kept == k else sae.at(k=kept)
        yield Row(_label(name, k, kept), kept / width, _record(data, found, name, seed, steps), seconds)


def _label(name: str, k: int, kept: int) -> str:
    return name if name in (TOPK, NESTED) or k == kept else f"{name}, trained at {k}"


def _record(data: Text, sae: Any, name: str, seed: int, steps: int) -> Record:
    batches = [Batch(part) for part in data.held.split(1024)]
    found = {key: float(value) for key, value in measure(sae, batches).items()}
    spliced = ce_recovered(data.model, SITE, Kept(sae), list(data.windows[:SPLICED].split(8)))
    size = sum(p.numel() for p in sae.parameters())
    return Record(
        method=name, task=f"{MODEL}, {SITE}", metric="explained variance", value=1 - found["fvu"], seed=seed, start="dense",
        dynamic=True, when="during", structure="codes", kept=size, parent=sum(p.numel() for p in data.model.parameters()),
        densities={SITE: min(found["l0"] / sae.width, 1.0)}, epochs=steps * BATCH / data.train.tokens,
        examples=data.train.tokens, hardware=hardware(), higher_is_better=True, inference_flops=None, training_flops=None,
        more={"l0": found["l0"], "dead": found["dead"], "recovered": spliced["recovered"], "loss": spliced["spliced"], "loss of the model": spliced["model"]},
    )  # fmt: skip


class Kept:
    """An autoencoder that leaves the first token of each window as it is: it was not trained on any."""

    def __init__(self, sae: Any) -> None:
        self.sae, self.W_dec = sae, sae.W_dec

    def encode(self, x: Tensor) -> Any:
        """Codes of all tokens; the input is kept for `decode`."""
        self.given = x
        return self.sae.encode(x)

    def decode(self, codes: Any) -> Tensor:
        """The reconstruction, and the first token of each window as it came."""
        first = (torch.arange(len(self.given)) % LENGTH == 0).unsqueeze(1)
        return torch.where(first, self.given, self.sae.decode(codes))


def verdicts(rows: list[Row], k: int, width: int) -> list[dict[str, Any]]:
    """Method -> explained variance and recovered loss beside the baseline's at the same L0, means over seeds, and in how many it was above.

    The baseline was trained at several k: between those its figures are interpolated in log L0, so that a method that missed its L0 is
    held against that of its own; one that is beyond all of these is not compared.
    """
    records = [(round(r.density * width), r.record) for r in rows]
    lines = []
    for name, base in CLAIMS.items():
        mine = {r.seed: r for kept, r in records if r.method == name and kept == k}
        if not mine:
            continue
        curve = {seed: [r for _, r in records if r.method == base and r.seed == seed] for seed in mine}
        line = {
            "method": name, "beside": base, "l0": _mean([r.more["l0"] for r in mine.values()], 2),
            "dead": _mean([r.more["dead"] for r in mine.values()]),
        }  # fmt: skip
        for title, figure in (("explained", _explained), ("recovered", _recovered)):
            pairs = [(figure(r), _at(r.more["l0"], curve[seed], figure)) for seed, r in mine.items()]
            met = [(own, other) for own, other in pairs if other is not None]
            line |= {
                title: _mean([own for own, _ in pairs]),
                f"{title} by the other": _mean([other for _, other in met]) if met else "not at this L0",
                f"{title}: above in": f"{sum(own > other for own, other in met)} of {len(met)}",
            }
        lines.append(line)
    return lines


def _explained(record: Record) -> float:
    return record.value


def _recovered(record: Record) -> float:
    return record.more["recovered"]


def _at(l0: float, curve: list[Record], figure: Callable[[Record], float]) -> float | None:
    """A figure of the baseline at an L0; None where it was trained for none as small or as large (within a twentieth)."""
    points = sorted((math.log(max(r.more["l0"], 1e-9)), figure(r)) for r in curve)
    first, last, x = points[0][0], points[-1][0], math.log(max(l0, 1e-9))
    if not first - 0.05 <= x <= last + 0.05:
        return None
    x = min(max(x, first), last)
    for (a, low), (b, high) in pairwise(points):
        if x <= b:
            return low + (high - low) * (x - a) / max(b - a, 1e-12)
    return points[-1][1]


def _mean(values: list[float], digits: int = 4) -> float:
    return round(statistics.mean(values), digits)


def main() -> None:
    args = arguments(
        __doc__ or "",
        data={"type": Path, "metavar": "FILE", "help": "books as gzipped JSON lines (title, text), or a text"},
        width={"type": int, "default": 1024, "help": "latents"},
        k={"type": int, "default": 8, "help": "latents a token; half and twice as many too"},
        steps={"type": int, "default": 400, "help": f"batches of {BATCH} tokens"},
        tokens={"type": int, "default": 60_000, "help": "tokens to train on"},
        held={"type": int, "default": 32, "help": f"windows of {LENGTH} tokens to measure on"},
        seeds={"type": int, "default": 2, "help": "dictionaries and orders of the tokens"},
    )
    if args.quick:
        args.width, args.k, args.steps, args.tokens, args.held, args.seeds = 64, 4, 3, 2048, 2, 1
    data = cache(lambda: text(args.data, args.tokens, args.held))  # not needed where all rows are read back
    setting = {n: getattr(args, n) for n in ("width", "k", "steps", "tokens", "held")}
    setting |= {
        "site": SITE,
        "rate": RATE,
        "batch": BATCH,
        "spliced": SPLICED,
        "text": args.data.name if args.data else "documentation",
    }
    rows = Rows("autoencoders", setting, quick=args.quick)
    k, every = args.k, (args.k // 2, args.k, 2 * args.k)
    plan = [(TOPK, n, (n,)) for n in every] + [(NESTED, 2 * k, every), (PURSUIT, k, every)]
    plan += [(name, k, (k,)) for name in CLAIMS if name not in (NESTED, PURSUIT)]
    for seed in range(args.seeds):
        for name, own, ks in plan:
            rows.add(
                f"{name} {own} {seed}",
                lambda n=name, o=own, q=ks, s=seed: list(rows_of(data(), n, o, q, s, args.width, args.steps)),
            )
    rows.show()
    tables = {f"beside {TOPK} at L0 {n}": verdicts(rows.rows, n, args.width) for n in every}
    for title, lines in tables.items():
        table(title, list(lines[0]), [[str(v) for v in entry.values()] for entry in lines])
    path = args.json
    rows.store(None if path is None else path if path.parent != Path() else RESULTS / "codes" / path, tables=tables)


if __name__ == "__main__":
    main()

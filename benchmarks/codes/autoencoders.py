"""Which autoencoder explains the activations of a small model best at equal L0, how many of its latents are dead, and what does splicing cost?

Activations are those of a middle layer of `sparseworks/tiny-lm` (trained here) or of an encoder (`--model minilm`, or a folder) on books, or on
the documentation without `--data`. The last tenth of the text is never trained on: by one half of it the learning rate of each method is
chosen from `--rates`, at the second L0; explained variance, dead latents and L0 are of the other half. `recovered` is the share of the
cross-entropy between the layer at 0 and the model's own that is left when the layer's output is the reconstruction; an encoder has no such
loss: `cosine` is that of the text's embedding with its own. Methods run as registered but for k or L0, for the tokens after which a
latent counts as dead while training (a twentieth of it), and for the width of pseudo-gradients (`--bandwidths`); methods whose rows compete
are measured in their inference form, with a threshold found on training tokens. Methods are held against TopK at the L0 they came to. Where
one autoencoder serves several budgets it is trained once and cut: `hierarchical_topk` at the largest, `mp_sae` at the smallest. Rows are kept
as they end; a run that was cut off, or that stopped after `--minutes`, goes on where it was.

    OMP_NUM_THREADS=1 python benchmarks/codes/autoencoders.py --threads 1 --data books.jsonl.gz --json autoencoders
    OMP_NUM_THREADS=1 python benchmarks/codes/autoencoders.py --threads 1 --model minilm --data books.jsonl.gz --json autoencoders_minilm
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import DEVICE, RESULTS, arguments, table
from rows import JOURNALS, Row, Rows, hardware  # pyright: ignore[reportMissingImports]
from spliced import SPLICED, Text, text  # pyright: ignore[reportMissingImports]

import sparseworks as sw
from sparseworks.codes.autoencoders import AutoencoderMethod, Batch
from sparseworks.codes.autoencoders.metrics import measure
from sparseworks.codes.autoencoders.stream import passes
from sparseworks.core.ahead import running_ahead
from sparseworks.core.record import Record
from sparseworks.jobs.journal import Journal, read_json

MODEL = "sparseworks/tiny-lm"
SITES = {MODEL: ("model.layers.2", 256), "minilm": ("encoder.layer.2", 128)}
"""Model -> site and tokens a window."""
TOPK, NESTED, PURSUIT, GRADIENTS = "topk_sae", "hierarchical_topk", "mp_sae", "g_sae"
CHOSEN = "explained of others"
"""Explained variance of the tokens that learning rates are chosen by."""
CLAIMS = {
    "batch_topk_sae": TOPK, "jumprelu_sae": TOPK, "gated_sae": TOPK, NESTED: TOPK, PURSUIT: TOPK, "matryoshka_sae": TOPK,
    GRADIENTS: TOPK,
}  # fmt: skip
"""Which method is said to explain no less than which at equal L0 (matryoshka: somewhat less; g_sae: less, with more recovered)."""
_AT_ONCE = 8192
_PURSUED = 50_000
"""Tokens that dead latents of a pursuit are counted on: encoding takes it a pass over the dictionary a latent."""


@dataclass(frozen=True)
class Training:
    """How autoencoders are trained.

    Attributes:
        width: latents.
        steps, batch: batches, and tokens of each.
        rate: the highest learning rate.
        bandwidth: of JumpReLU's pseudo-gradients.
    """

    width: int
    steps: int
    batch: int
    rate: float = 3e-3
    bandwidth: float = 0.05

    @property
    def tokens(self) -> int:
        """Trained on, those that came again counted again."""
        return self.steps * self.batch


def method(name: str, k: int, how: Training) -> AutoencoderMethod:
    """A registered method with k latents a token."""
    own = {
        "jumprelu_sae": {"l0": float(k), "bandwidth": how.bandwidth},
        "gated_sae": {"l0": float(k), "every": max(how.steps // 16, 1)},
    }
    found = sw.method(name, **own.get(name, {"k": k}))
    return found if found.auxiliary is None else found.with_(after=max(how.tokens // 20, 1))


def trained(data: Text, name: str, k: int, seed: int, how: Training) -> Any:
    """One autoencoder for k latents, in its inference form where rows compete."""
    sae = sw.train_autoencoder(
        data.train, method(name, k, how), width=how.width, steps=how.steps, batch=how.batch, seed=seed, lr=how.rate,
        warmup=0.1, decay=0.3,
    )  # fmt: skip
    return sae.export(passes(data.train, how.batch, 20)) if sae.rule.across else sae


def measured(sae: Any, tokens: Tensor, *metrics: str) -> dict[str, float]:
    """Metrics on some tokens; none named: FVU, L0 and dead latents."""
    batches = [Batch(x) for x in tokens.split(_AT_ONCE)]
    with running_ahead(tokens.is_cuda):
        return {key: float(value) for key, value in measure(sae, batches, metrics or ("fvu", "l0", "dead")).items()}


def rows_of(
    data: Text, name: str, k: int, ks: Sequence[int], seed: int, how: Training, saved: Path | None
) -> Iterator[Row]:
    """Train one autoencoder for k latents and measure it at each of `ks`."""
    began = time.perf_counter()
    sae = trained(data, name, k, seed, how)
    seconds = time.perf_counter() - began
    if saved is not None:
        _save(sae, saved / _file(name, k, seed, how))
    for kept in ks:
        found = sae if kept == k else sae.at(k=kept)
        yield Row(_label(name, k, kept), kept / how.width, _record(data, found, name, seed, how), seconds)


def _file(name: str, k: int, seed: int, how: Training) -> str:
    return f"{name}-{k}-{seed}-{how.rate:g}-{how.bandwidth:g}.safetensors"


def _save(sae: Any, path: Path) -> None:
    """The state, matrices in 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {n: t.detach().cpu().to(torch.bfloat16 if t.dim() > 1 else t.dtype) for n, t in sae.state_dict().items()}
    save_file({n: t.contiguous() for n, t in halved.items()}, path, {"rule": sae.rule.registered_name})


def _label(name: str, k: int, kept: int) -> str:
    return name if name in (TOPK, NESTED) or k == kept else f"{name}, trained at {k}"


def _record(data: Text, sae: Any, name: str, seed: int, how: Training) -> Record:
    found = measured(sae, data.held)
    chosen = {"rate": how.rate, **({"bandwidth": how.bandwidth} if name == "jumprelu_sae" else {})}
    seen = data.train.all.x[: _PURSUED if name == PURSUIT else None]
    dead = {"dead": measured(sae, seen, "dead")["dead"], "dead on held-out": found["dead"]}
    size = sum(p.numel() for p in sae.parameters())
    return Record(
        method=name, task=f"{data.name}, {data.site}", metric="explained variance", value=1 - found["fvu"], seed=seed, start="dense",
        dynamic=True, when="during", structure="codes", kept=size, parent=sum(p.numel() for p in data.model.parameters()),
        densities={data.site: min(found["l0"] / sae.width, 1.0)}, epochs=how.tokens / data.train.tokens,
        examples=data.train.tokens, hardware=hardware(), higher_is_better=True, inference_flops=None, training_flops=None,
        more={"l0": found["l0"], **dead, **data.spliced(sae), **chosen, CHOSEN: 1 - measured(sae, data.chosen, "fvu")["fvu"]},
    )  # fmt: skip


# -- tables -----------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], width: int) -> list[dict[str, Any]]:
    """A line a method and budget: means over seeds, explained variance with its deviation."""
    lines = []
    for k in sorted({round(r.density * width) for r in rows}):
        for label in dict.fromkeys(r.label for r in rows):
            own = [r for r in rows if r.label == label and round(r.density * width) == k]
            if own:
                values = [r.record.value for r in own]
                spread = round(statistics.stdev(values), 4) if len(own) > 1 else None
                line = {"asked": k, "method": label, "explained": _mean(values), "±": spread}
                for name in own[0].record.more:
                    if name not in ("loss of the model", CHOSEN):
                        line[name] = _mean([r.record.more[name] for r in own])
                lines.append(line | {"s": round(_mean([r.seconds or 0.0 for r in own])), "seeds": len(own)})
    return lines


def verdicts(rows: Sequence[Row], k: int, width: int) -> list[dict[str, Any]]:
    """Method -> explained variance and spliced figure beside the baseline's at the same L0, means over seeds, and in how many it was above.

    The baseline was trained at several k: between those its figures are interpolated in log L0, so that a method that missed its L0 is
    held against that of its own; one that is beyond all of these is not compared.
    """
    records = [(round(r.density * width), r.record) for r in rows]
    lines = []
    for name, base in CLAIMS.items():
        mine = {r.seed: r for kept, r in records if r.method == name and kept == k}
        curve = {seed: [r for _, r in records if r.method == base and r.seed == seed] for seed in mine}
        if not mine or not all(curve.values()):
            continue
        line = {
            "method": name, "beside": base, "l0": _mean([r.more["l0"] for r in mine.values()], 2),
            "dead": _mean([r.more["dead"] for r in mine.values()]),
        }  # fmt: skip
        title = "recovered" if "recovered" in next(iter(mine.values())).more else "cosine"
        for key, figure in (("explained", _explained), (title, lambda r, t=title: r.more[t])):
            pairs = [(figure(r), _at(r.more["l0"], curve[seed], figure)) for seed, r in mine.items()]
            met = [(own, other) for own, other in pairs if other is not None]
            line |= {
                key: _mean([own for own, _ in pairs]),
                f"{key} by the other": _mean([other for _, other in met]) if met else "not at this L0",
                f"{key}: above in": f"{sum(own > other for own, other in met)} of {len(met)}",
            }
        lines.append(line)
    return lines


def _explained(record: Record) -> float:
    return record.value


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


# -- the run ----------------------------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"default": MODEL, "help": "an embedded model, or the folder of one"},
    "site": {"default": None, "help": "whose output is explained; needed where the model is not one of the two"},
    "data": {"type": Path, "metavar": "FILE", "help": "books as gzipped JSON lines (title, text), or a text"},
    "width": {"type": int, "default": 2048, "help": "latents"},
    "k": {"type": int, "nargs": 3, "default": [8, 16, 32], "help": "latents a token, ascending"},
    "steps": {"type": int, "default": 400, "help": "batches"},
    "batch": {"type": int, "default": 512, "help": "tokens a batch"},
    "bandwidths": {
        "type": float,
        "nargs": "+",
        "default": [0.05],
        "help": "of JumpReLU's pseudo-gradients, to choose from",
    },
    "spliced": {"type": int, "default": SPLICED, "help": "windows that the spliced model is measured on"},
    "tokens": {"type": int, "default": 200_000, "help": "tokens to train on"},
    "held": {"type": int, "default": 100, "help": "windows to measure on"},
    "seeds": {"type": int, "default": 2, "help": "dictionaries and orders of the tokens"},
    "rates": {"type": float, "nargs": "+", "default": [3e-3, 1e-2], "help": "learning rates to choose from"},
    "methods": {"nargs": "+", "default": [TOPK, *(n for n in CLAIMS if n != GRADIENTS)], "help": "which"},
    "as_it_is": {"action": "store_true", "help": "train nothing more: store the rows there are"},
    "minutes": {"type": float, "default": None, "help": "end after the first row after so long; call again to go on"},
    "journal": {"type": Path, "metavar": "FILE", "help": "keep rows in this file and leave them there"},
    "join": {
        "type": Path,
        "nargs": "+",
        "default": [],
        "help": "journals of other runs, whose rows are taken over first",
    },
    "save": {"type": Path, "metavar": "FOLDER", "help": "keep the autoencoders of the first seed at the second L0"},
    "device": DEVICE,
}


def main() -> None:
    args = arguments(__doc__ or "", **OPTIONS)
    if args.quick:
        vars(args).update(
            width=64, k=[2, 4, 8], steps=5, batch=512, tokens=2048, held=2, seeds=1, spliced=2, rates=args.rates[:1]
        )
    site, length = SITES.get(args.model if args.model in SITES else Path(args.model).name, (args.site, 128))
    if site is None:
        raise SystemExit(f"Say with --site what of {args.model} is to be explained.")
    site = args.site or site
    length = 40 if args.quick else length
    folder = None if args.quick else JOURNALS
    how = Training(args.width, args.steps, args.batch)
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")  # products in TF32 while training; nothing here needs more

    @cache
    def data() -> Text:
        return text(
            args.model, site, args.data, length, args.tokens, args.held, folder, device=args.device, spliced=args.spliced,
            gradients=GRADIENTS in args.methods,
        )  # fmt: skip

    numbers = ("width", "k", "steps", "batch", "tokens", "held", "spliced")
    setting = {n: getattr(args, n) for n in numbers} | {
        "model": args.model if args.model in SITES else Path(args.model).name,
        "site": site,
        "text": args.data.name if args.data else "documentation",
    }
    rows = _rows(args, setting)
    ends = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes
    ks = tuple(args.k)

    def add(name: str, own: int, at: tuple[int, ...], seed: int, choice: Training) -> list[Row]:
        key = f"{name} {own} {seed} at {choice.rate:g}"
        key += f" and {choice.bandwidth:g}" if name == "jumprelu_sae" else ""
        if args.as_it_is and key not in rows.journal:
            return []
        saved = args.save if name == TOPK or not seed else None
        saved = saved if own == ks[1] or len(at) > 1 else None
        found = rows.add(key, lambda: list(rows_of(data(), name, own, at, seed, choice, saved)))
        if time.monotonic() > ends:
            raise SystemExit("Time is up: call again to go on.")
        return found

    choices: dict[str, Training] = {}
    for name, own, at in _plan(args.methods, ks):
        if name not in choices and (own == ks[1] or len(at) > 1):
            several = [replace(how, rate=rate) for rate in args.rates]
            if name == "jumprelu_sae":
                several = [replace(h, bandwidth=b) for h in several for b in args.bandwidths]
            tried = {choice: found[at.index(own)] for choice in several if (found := add(name, own, at, 0, choice))}
            if tried:
                choices[name] = max(tried, key=lambda choice: tried[choice].record.more[CHOSEN])
            for choice in set(tried) - {choices.get(name)} if args.save else ():
                (args.save / _file(name, own, 0, choice)).unlink(missing_ok=True)
    rows.rows.clear()  # what follows reads the chosen ones back
    for seed in range(args.seeds):
        for name, own, at in _plan(args.methods, ks):
            if name in choices:
                add(name, own, at, seed, choices[name])
    _show_and_store(rows, args)


def _show_and_store(rows: Rows, args: Any) -> None:
    """Means over seeds, and each method beside TopK."""
    lines = summary(rows.rows, args.width)
    tables = {"means over seeds": lines}
    tables |= {f"beside {TOPK} at L0 {n}": verdicts(rows.rows, n, args.width) for n in args.k}
    for title, some in tables.items():
        if some:
            table(title, list(some[0]), [[str(entry.get(c, "")) for c in some[0]] for entry in some])
    path = args.json
    rows.store(
        None if path is None else path if path.parent != Path() else RESULTS / "codes" / path,
        tables=tables,
        rates=args.rates,
        bandwidths=args.bandwidths,
    )


def _rows(args: Any, setting: dict[str, Any]) -> Rows:
    """With the rows of the journals to join."""
    rows = Rows(f"autoencoders-{Path(setting['model']).name}", setting, quick=args.quick)
    run = json.dumps(rows.setting, sort_keys=True, default=str)
    if args.journal is not None:
        rows.journal = Journal(args.journal, run)
    for path in args.join:
        other = read_json(path)
        if other is None or other.pop("run") != run:
            raise SystemExit(f"{path} is no journal of a run with these settings.")
        for key, value in other.items():
            rows.journal.keep(key, lambda value=value: value)
    return rows


def _plan(methods: Sequence[str], ks: tuple[int, ...]) -> list[tuple[str, int, tuple[int, ...]]]:
    """Method, the k it is trained at, those it is measured at."""
    plan: list[tuple[str, int, tuple[int, ...]]] = []
    for name in methods:
        if name == NESTED:
            plan.append((name, ks[-1], ks))
        elif name == PURSUIT:
            plan.append((name, ks[0], ks))
        else:
            plan += [(name, k, (k,)) for k in ks]
    return plan


if __name__ == "__main__":
    main()

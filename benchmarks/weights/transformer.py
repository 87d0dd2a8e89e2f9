"""What the benchmarks on a small transformer share: dense models by seed, rows that are stored one by one, options chosen on a seed of their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from byte_decoder import Bytes, Decoder, Size, train
from common import DEVICE, arguments
from rows import Row, Rows, read, record_of
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.evaluate import documentation_passages

TUNING = 100
"""The seed on which options are chosen."""


def parsed(doc: str, parts: tuple[str, ...], **extra: Any) -> argparse.Namespace:
    """The command line."""
    return arguments(
        doc.split("\n")[0],
        text={"type": Path, "help": "text to train and measure on (.txt, .jsonl, also .gz); default: documentation"},
        part={"choices": parts, "nargs": "+", "default": list(parts), "help": "questions"},
        seeds={"type": int, "default": 3, "help": "repetitions"},
        first={"type": int, "default": 1200, "help": "steps from scratch"},
        steps={"type": int, "default": 1000, "help": "steps of a dense model that goes on"},
        merge={"type": Path, "nargs": "+", "help": "only join the rows of these files"},
        device=DEVICE,
        **extra,
    )


class Bench:
    """The text, the dense models by seed, and the rows."""

    def __init__(self, name: str, args: Any):
        self.args, self.quick = args, args.quick
        self.size = Size(32, 2, 2, 32, 8) if args.quick else Size()
        self.first, self.steps = (20, 12) if args.quick else (args.first, args.steps)
        found = args.text or [p.whole for p in documentation_passages(held_out=False)]
        self.text = Bytes(found, self.size, args.device, 32 if args.quick else 1024)
        self.name = args.text.name.partition(".")[0] if args.text else "documentation"
        setting = {
            "text": self.name, "bytes": len(self.text.train), "first": self.first, "steps": self.steps, **vars(self.size),
            "products": "bfloat16" if args.device.startswith("cuda") else "float32",
        }  # fmt: skip
        self.rows = Rows(
            "nm_transformer", setting, quick=True
        )  # runs of parts are beside each other: no common journal
        self.dense = cache(self._dense)

    def _dense(self, seed: int) -> Decoder:
        model = self.fresh(seed)
        train(model, self.text, self.first, seed + 1000)
        return model.requires_grad_(False).eval()

    def fresh(self, seed: int, of: nn.Module | None = None) -> Decoder:
        """A new model, with the weights of another if there is one."""
        torch.manual_seed(seed)
        model = Decoder(self.size).to(self.args.device)
        if of is not None:
            model.load_state_dict(of.state_dict())
        return model

    def row(
        self,
        label: str,
        density: float,
        model: nn.Module,
        seed: int,
        steps: int,
        method: Method | None,
        supports: Mapping[str, sw.Support],
        **own: Any,
    ) -> Row:
        """The held-out loss of a model that took `steps` batches."""
        record = record_of(
            method, supports, model, metric="nats a byte", value=self.text.loss(model), higher_is_better=False, seed=seed,
            epochs=steps * self.size.batch * self.size.context / len(self.text.train), examples=len(self.text.train), **own,
        )  # fmt: skip
        return Row(label, density, record)

    def add(self, key: str, make: Callable[[], Row]) -> float:
        """Make a row, and store what there is; its value."""
        value = self.rows.add(key, make)[0].record.value
        if not self.quick:
            self.rows.store(self.args.json)
        return value

    def best(self, options: Mapping[str, Any], run: Callable[[str, Any], float]) -> tuple[str, Any]:
        """The option of the lowest loss on the seed for that; the only one is not tried."""
        if len(options) == 1:
            return next(iter(options.items()))
        found = {name: run(name, option) for name, option in options.items()}
        name = min(found, key=lambda n: found[n])
        return name, options[name]


def in_blocks(model: nn.Module) -> list[Site]:
    """The layers that become sparse."""
    return [s for s in sw.sites(model) if s.name.startswith("blocks.")]


def merged(name: str, files: list[Path], target: Path | None) -> None:
    """Rows of several runs of one setting, as one run would have stored them."""
    heads, rows = zip(*(read(f) for f in files), strict=True)
    if any(h["setting"] != heads[0]["setting"] for h in heads):
        raise SystemExit("The runs have different settings.")
    whole = Rows(name, heads[0]["setting"], quick=True)
    once = {(r.label, r.density, r.record.task, r.record.seed): r for some in rows for r in some}
    whole.rows = list(once.values())  # dense rows are in more than one
    whole.show()
    whole.store(target, **{k: heads[0][k] for k in ("created", "command", "machine")})


def answer(name: str, kind: type[Bench], args: argparse.Namespace) -> None:
    """Answer the questions asked for, or join what was stored."""
    if args.merge:
        merged(name, args.merge, args.json)
        return
    bench = kind(name, args)
    for part in args.part:
        getattr(bench, part)()
    bench.rows.show()
    bench.rows.store(args.json)

"""What do methods of attention cost a sample that is denoised over many steps, and how many pairs do they still compute?

Video: `sparseworks/toydiff` (512 tokens) samples clips from the same noise with and without a method; PSNR is against the dense
sample. Text, with `--books`: `sparseworks/dlm` fills the gaps of the second half of prose; agreement is with what dense attention
fills in. Density is the mean over all layers and steps, dense ones included; seconds are processor time of the whole sample, once.

    python benchmarks/attention/denoising.py --threads 2 --json benchmarks/results/attention/denoising
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.attention import AttentionMethod, Clip, blocks
from sparseworks.attention.cache.blockwise import Blockwise
from sparseworks.attention.masks import Band
from sparseworks.attention.timing import From, Searches
from sparseworks.core.budget import Mass, Threshold
from sparseworks.evaluate.sequences import psnr
from sparseworks.models import MaskedLM, VideoDiffusion
from sparseworks.models.masked_lm import MASK, denoise, encode
from sparseworks.models.video import sample

LATE = From(steps=0.2)
BLOCK = blocks(16)


@dataclass(frozen=True)
class Row:
    """One method on one model."""

    task: str
    method: str
    setting: str
    density: float
    fidelity: float
    seconds: float
    dense_seconds: float


def video_methods() -> Iterator[tuple[str, AttentionMethod]]:
    """(setting, method): all dense for a fifth of the steps, unless their paper says otherwise."""
    for density in (0.5, 0.25):
        what = f"{density:.0%}"
        even = {"pattern": BLOCK, "density": density}
        yield what, sw.method("adaspa", **even)
        yield f"{what}, heads adapt", sw.method("adaspa", pattern=BLOCK, budget={"head_adaptive": {"value": density}})
        yield what, sw.method("sparsed", **even)
        yield f"{what}, frozen at step 0", sw.method("sparsed", **even, schedule=Searches((0.0,)))
        yield f"{what}, every step", sw.method("oracle_blocks", **even, schedule=LATE)
        yield f"{what}, every step", sw.method("pooled_blocks", **even, schedule=LATE)
        yield f"{what}, every step", sw.method("draft_attention", pattern=BLOCK_OF_ALL, density=density, order={"cells": {"height": 4, "width": 4}}, schedule=LATE)  # fmt: skip
        yield f"{what}, every step", sw.method("sparse_videogen", pattern=BLOCK_OF_ALL, density=density, schedule=LATE)
        yield f"{what}, every step", sw.method("svg_ear", pattern=BLOCK_OF_ALL, density=density, schedule=LATE)
        yield f"{what}, whole clusters", sw.method("svg_ear", density=density, schedule=LATE)
        yield f"mass {density}, every step", sw.method("psa", pattern=blocks(32, 16), budget=Mass(density), schedule=LATE)  # fmt: skip
        yield what, sw.method("pooled_blocks", score=None, always=Band(int(256 * density)), pattern=BLOCK, schedule=LATE).with_(name="band")  # fmt: skip
    for bits in (-10.0, -3.0, -1.0):
        yield f"{bits:g} bits", sw.method("lite_attention", pattern=BLOCK, budget=Threshold(bits))
    for width in (17, 33):
        method = sw.method("re_ttention", pattern=BLOCK, always=Band(width))
        yield f"band of {2 * width - 1}", method
        yield f"band of {2 * width - 1}, no rest", method.with_(rest=None)


BLOCK_OF_ALL = blocks(16, group=sw.attention.method.WHOLE)


def video(args: Namespace) -> Iterator[Row]:
    model, clip = cast(VideoDiffusion, sw.load("sparseworks/toydiff").eval()), Clip(8, 8, 8)
    sample(model, args.samples, steps=2)
    dense, seconds = _timed(lambda: sample(model, args.samples, steps=args.steps))
    for setting, method in list(video_methods())[:: 6 if args.quick else 1]:
        with sw.attention(model, method, steps=args.steps, clip=clip) as run:
            found, taken = _timed(lambda: sample(model, args.samples, steps=args.steps))
        yield Row("video, PSNR in dB", method.name, setting, run.density(), psnr(found, dense), taken, seconds)


def text(args: Namespace) -> Iterator[Row]:
    model, ids, start = cast(MaskedLM, sw.load("sparseworks/dlm").eval()), _prose(args.books, args.rows), 128
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden[:, :start] = False
    masked = torch.where(hidden, MASK, ids)

    def fill(**options) -> torch.Tensor:
        return denoise(model, masked, start=start, **options)

    whole = {"block": 128, "steps": 16}
    dense, seconds = _timed(lambda: fill(**whole))
    agree = lambda found, right: float((found == right)[hidden].float().mean())  # noqa: E731
    for density in (0.5, 0.3):
        frozen = sw.method("sparsed", pattern=BLOCK, density=density)
        band = frozen.with_(score=None, always=Band(int(128 * density)), name="band")
        late = frozen.with_(schedule=Searches((0.0,)))
        for setting, method in (("", frozen), (", frozen at step 0", late), (" band", band)):
            with sw.attention(model, method, steps=16, prompt=start) as run:
                found, taken = _timed(lambda: fill(**whole))
            yield Row("text, agreement", method.name, f"{density:.0%}{setting}", run.density(), agree(found, dense), taken, seconds)  # fmt: skip
    pieces = {"block": 16, "steps": 8}
    dense, seconds = _timed(lambda: fill(**pieces))
    for density in (1.0, 0.5, 0.25):
        with sw.attention(model, sw.method("sparse_dllm", density=density)) as run:
            call = Blockwise(run, model)
            found, taken = _timed(lambda call=call: fill(**pieces, call=call))
        share = call.processed / (ids.numel() * 8 * 8)
        yield Row("text in blocks, agreement", "sparse_dllm", f"cache {density:.0%}; tokens processed as density", share, agree(found, dense), taken, seconds)  # fmt: skip


def _prose(books: Path, rows: int) -> torch.Tensor:
    """Windows of the novel that the model was not trained on."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
    from tiny_lm_text import read_books  # pyright: ignore[reportMissingImports]

    whole = read_books(books)["Bleak House"]
    starts = torch.randint(len(whole) - 256, (rows,), generator=torch.Generator().manual_seed(5)).tolist()
    return encode([whole[s : s + 256] for s in starts])


def _timed(call):
    began = time.process_time()
    found = call()
    return found, time.process_time() - began


def main() -> None:
    args = arguments(
        __doc__ or "",
        steps={"type": int, "default": 50, "help": "denoising steps of the video"},
        samples={"type": int, "default": 2, "help": "clips"},
        rows={"type": int, "default": 32, "help": "windows of prose"},
        books={"type": Path, "metavar": "FILE", "help": "gzipped JSON lines, title and text"},
    )
    if args.quick:
        args.steps, args.rows = 10, 2
    rows = [*video(args), *(text(args) if args.books else ())]
    head = ("task", "method", "setting", "density", "fidelity", "s", "dense s")
    table(f"{args.samples} clips in {args.steps} steps", head, [(r.task, r.method, r.setting, f"{r.density:.3f}", f"{r.fidelity:.3f}", f"{r.seconds:.1f}", f"{r.dense_seconds:.1f}") for r in rows])  # fmt: skip
    store("denoising", rows, args.json)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

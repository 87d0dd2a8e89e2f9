"""What are the latents of autoencoders worth beyond reconstruction? SAEBench's sparse probing, absorption and disentanglement on a small model.

The model is `sparseworks/tiny-lm`, the text novels. Sparse probing: which of the books is a passage of 128 tokens from, told by the k latents
whose means differ most (each book against as many passages of the others; chance is 0.5). Absorption: is a token the beginning of a word, its continuation,
or capitalised, at the token itself behind a line break (the first letter, which the protocol asks for, is not in this model: linear probes of
its 3700 tokens of letters had an F1 of at most 0.32 on tokens they were not fitted to, where 0.6 is asked for). Disentanglement: of the same tokens whether it begins a word, whether its letter is a
capital one, and how long it is, each read by a linear probe from the reconstruction after the latents of one attribute were taken from
another token. The activations themselves stand beside the autoencoders where the protocol has such a baseline: `activations` keeps the k
features that differ most, and patches features.

Beside these what is left over: how much of the error, and of its squared norm, is linear in the activations, and the error where gradient
pursuit chooses as many latents.

Autoencoders are trained here as `autoencoders.py` trains them, or are the ones it saved (`--saved`).

    OMP_NUM_THREADS=1 python benchmarks/codes/saebench.py --threads 1 --data books.jsonl.gz --json saebench
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from autoencoders import MODEL, SITES, Training, method, trained  # pyright: ignore[reportMissingImports]
from common import RESULTS, arguments, table
from rows import JOURNALS, Row, Rows, hardware  # pyright: ignore[reportMissingImports]
from spliced import activations, text  # pyright: ignore[reportMissingImports]
from tiny_lm_text import read_books  # pyright: ignore[reportMissingImports]

import sparseworks as sw
from sparseworks.codes.autoencoders import (
    Batch,
    SparseAutoencoder,
    absorption,
    dark_matter,
    disentanglement,
    pooled,
    sparse_probing,
)
from sparseworks.core.codes import Codes
from sparseworks.core.record import Record
from sparseworks.io import load_tokenizer
from sparseworks.stream.tokens import plain_tokenizer

NAMES = ("topk_sae", "batch_topk_sae", "matryoshka_sae", "jumprelu_sae", "gated_sae", "hierarchical_topk", "mp_sae")
PASSAGE, KS = 128, (1, 2, 5)
_FITTED = 60_000  # tokens that the linear part of the error is fitted to
NONE = "activations"


class Itself:
    """The activations as their own code: what an autoencoder is held against."""

    def __init__(self, width: int) -> None:
        self.W_dec = torch.eye(width)
        self.width = width

    def encode(self, x: Tensor) -> Codes:
        """Every feature."""
        return Codes.whole(x)

    def decode(self, codes: Codes) -> Tensor:
        """The same."""
        return codes.dense()


# -- the tasks --------------------------------------------------------------------------------------------------------


class Tasks:
    """Activations and labels of the three tasks.

    Args:
        path: of the books.
        passages: to train probes on and to test them on, of each book.
        site: whose output.
        words: about how many tokens at most.
    """

    def __init__(self, path: Path | None, passages: tuple[int, int], site: str, words: int = 10_000) -> None:
        self.model, self.site = sw.load(MODEL).float().eval(), site
        tokenizer = load_tokenizer(MODEL)
        self.passages = self._passages(path, tokenizer, *passages)
        self.words, self.kinds, self.attributes = self._words(tokenizer, words)
        order = torch.randperm(len(self.words), generator=torch.Generator().manual_seed(42))
        cut = len(order) * 4 // 5
        self.split = order[:cut], order[cut:]

    def _passages(self, path: Path | None, tokenizer: Any, train: int, test: int) -> list[tuple[Tensor, Tensor]]:
        """(passages, tokens, d) and book, to train on from the first half of each book and to test on from the second."""
        books = list(read_books(path).values()) if path is not None else []
        parts: list[list[Tensor]] = [[], []]
        for book in books or [f"Line {i} of a text. " * 40_000 for i in range(2)]:
            half = len(book) // 2
            for part, start, count in ((parts[0], 20_000, train), (parts[1], half + 20_000, test)):
                ids = plain_tokenizer(tokenizer).encode(book[start : start + 8 * PASSAGE * count]).ids
                part.append(torch.tensor(ids[: PASSAGE * count]).view(count, PASSAGE))
        found = []
        for part in parts:
            x = activations(self.model, torch.cat(part), self.site, False)
            x = x.view(-1, PASSAGE - 1, x.shape[1])
            found.append((x, torch.arange(len(part)).repeat_interleave(len(part[0]))))
        return found

    def _words(self, tokenizer: Any, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Activations of tokens that are letters only, each behind a line break, their kinds, and three attributes."""
        pieces = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
        pieces = {i: p for i, p in pieces.items() if p.strip().isascii() and p.strip().isalpha()}
        pieces = dict(list(pieces.items())[:: max(len(pieces) // most, 1)])
        ids = torch.tensor(list(pieces))
        before = torch.tensor(plain_tokenizer(tokenizer).encode("\n").ids[-1:])
        windows = torch.stack([before.expand(len(ids)), ids], 1)
        x = activations(self.model, windows, self.site, False)
        told = [(p[:1] == " ", p.strip()[0].isupper(), min(len(p.strip()) // 3, 2)) for p in pieces.values()]
        attributes = torch.tensor(told).long()
        return x, torch.where(attributes[:, 1] == 1, 2, 1 - attributes[:, 0]), attributes


def measured(tasks: Tasks, sae: Any) -> dict[str, float]:
    """All figures of an autoencoder."""
    (a, ya), (b, yb) = tasks.passages
    probing = sparse_probing(pooled(sae, a), ya, pooled(sae, b), yb, ks=KS).mean(1).tolist()
    found = {f"probing, k {k}": value for k, value in zip(KS, probing, strict=True)}
    first, rest = tasks.split
    x, kinds = tasks.words, tasks.kinds
    absorbed = absorption(sae, x[first], kinds[first], x[rest], kinds[rest])
    found |= {"absorbed": absorbed.fraction, "fully absorbed": absorbed.full, "latents a kind": absorbed.split}
    apart = disentanglement(sae, x, tasks.attributes)
    cause, isolation = float(apart.cause.mean()), float(apart.isolation.mean())
    found |= {"cause": cause, "isolation": isolation, "disentangled": apart.score}
    left = ("error", "R2 of the error", "R2 of its norm", "error of pursuit")
    if isinstance(sae, Itself):
        return found | dict.fromkeys(left, 0.0)
    fit, held = (_some(x.flatten(0, 1), most) for x, most in ((a, _FITTED), (b, _FITTED // 3)))
    parts = dark_matter(sae, fit, held)
    return found | dict(zip(left, (parts.error, parts.r2_error, parts.r2_norm, parts.pursuit), strict=True))


def _some(x: Tensor, most: int) -> list[Batch]:
    return [Batch(part) for part in x[:: max(len(x) // most, 1)].split(4096)]


def _loaded(path: Path, name: str, k: int, how: Training) -> Any:
    """An autoencoder that `autoencoders.py` saved."""
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        exported = (file.metadata() or {}).get("rule") == "thresholds"
    width, d = state["W_dec"].shape
    sae = SparseAutoencoder(method(name, k, how), d, width)
    for key, value in state.items():
        sae.get_parameter(key).data.copy_(value) if key in dict(sae.named_parameters()) else sae.get_buffer(key).copy_(
            value
        )
    sae = sae.eval()
    return sae.export() if exported else sae


def rows_of(
    tasks: Tasks, tokens: Any, name: str, k: int, seed: int, how: Training, saved: Path | None
) -> Iterator[Row]:
    """One autoencoder, and its figures."""
    began = time.perf_counter()
    if name == NONE:
        sae: Any = Itself(tasks.words.shape[1])
    elif saved is not None:
        trained_at = {"hierarchical_topk": 2 * k, "mp_sae": k // 2}.get(name, k)
        (path,) = saved.glob(f"{name}-{trained_at}-{seed}-*.safetensors")
        sae = _loaded(path, name, trained_at, how)
        sae = sae if trained_at == k else sae.at(k=k)
    else:
        sae = trained(tokens(), name, k, seed, how)
    found = measured(tasks, sae)
    record = Record(
        method=name, task=f"{MODEL}, {tasks.site}", metric="sparse probing, k = 1", value=found["probing, k 1"], seed=seed,
        start="dense", dynamic=True, when="during", structure="codes", kept=tasks.words.shape[1] * 2 * how.width,
        parent=sum(p.numel() for p in tasks.model.parameters()), densities={tasks.site: k / how.width}, epochs=1.0,
        examples=how.tokens, hardware=hardware(), higher_is_better=True, inference_flops=None, training_flops=None, more=found,
    )  # fmt: skip
    yield Row(name, k / how.width, record, time.perf_counter() - began)


def main() -> None:
    args = arguments(
        __doc__ or "",
        data={"type": Path, "metavar": "FILE", "help": "books as gzipped JSON lines (title, text)"},
        width={"type": int, "default": 2048, "help": "latents"},
        k={"type": int, "default": 16, "help": "latents a token"},
        steps={"type": int, "default": 400, "help": "batches"},
        batch={"type": int, "default": 512, "help": "tokens a batch"},
        tokens={"type": int, "default": 200_000, "help": "tokens to train on"},
        passages={
            "type": int,
            "nargs": 2,
            "default": [100, 50],
            "help": "of each book, to train probes on and to test on",
        },
        seeds={"type": int, "default": 1, "help": "dictionaries"},
        saved={"type": Path, "metavar": "FOLDER", "help": "autoencoders that were trained before"},
        methods={"nargs": "+", "default": [NONE, *NAMES], "help": "which"},
    )
    if args.quick:
        args.width, args.k, args.steps, args.tokens, args.passages, args.methods = (
            64,
            4,
            5,
            2048,
            [6, 4],
            [NONE, "topk_sae"],
        )
    site, length = SITES[MODEL]
    how = Training(args.width, args.steps, args.batch)
    tasks = Tasks(args.data, (args.passages[0], args.passages[1]), site, 300 if args.quick else 10_000)

    @cache
    def tokens() -> Any:
        return text(MODEL, site, args.data, length, args.tokens, 1, None if args.quick else JOURNALS)

    names = ("width", "k", "steps", "batch", "tokens", "passages")
    setting = {n: getattr(args, n) for n in names} | {"model": MODEL, "site": site}
    rows = Rows("saebench", setting, quick=args.quick)
    for seed in range(args.seeds):
        for name in args.methods:
            if name != NONE or not seed:
                rows.add(
                    f"{name} {seed}", lambda n=name, s=seed: list(rows_of(tasks, tokens, n, args.k, s, how, args.saved))
                )
    lines = []
    for name in dict.fromkeys(r.label for r in rows.rows):
        own = [r.record.more for r in rows.rows if r.label == name]
        lines.append(
            {"method": name}
            | {key: round(sum(m[key] for m in own) / len(own), 4) for key in own[0]}
            | {"seeds": len(own)}
        )
    table("means over seeds", list(lines[0]), [[str(v) for v in line.values()] for line in lines])
    path = args.json
    target = None if path is None else path if path.parent != Path() else RESULTS / "codes" / path
    rows.store(target, tables={"means over seeds": lines})


if __name__ == "__main__":
    main()

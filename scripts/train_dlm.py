"""Train ``sparseworks/dlm``, a masked diffusion language model over characters.

A third of the rows are windows of public-domain novels, the others ledgers (``sparseworks.evaluate.sequences.ledger``) with a
piece of such a window in their middle. One novel (``--hold-out``) is kept for validation. Running the same command again continues
where the last run stopped.

    OMP_NUM_THREADS=1 python scripts/train_dlm.py --books books.jsonl.gz --work out/dlm
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from small_training import arguments, train
from tiny_lm_text import read_books

from sparseworks.evaluate.sequences.ledger import Ledger, ledger
from sparseworks.models.masked_lm import MASK, MaskedLM, MaskedLMConfig, denoise, diffusion_loss, encode

STAGES = ((0.0, 32), (0.2, 64), (0.5, 128), (0.75, 256))
"""(share of the steps after which, characters of a row)."""
HELD_OUT = 1 << 40


def windows(text: str, rows: int, length: int, seed: int) -> list[str]:
    starts = torch.randint(len(text) - length, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [text[s : s + length] for s in starts]


def some_ledgers(text: str, rows: int, length: int, seed: int) -> Ledger:
    most = length // 12 + 2
    entries = int(torch.randint(most // 2, most + 1, (1,), generator=torch.Generator().manual_seed(seed)))
    return ledger(windows(text, rows, length, seed), length, entries=entries, seed=seed)


def loss_of(model: MaskedLM, text: str, step: int, rows: int, length: int, seed: int) -> torch.Tensor:
    """Loss of prose, every character masked with the row's probability, plus loss of what ledgers ask for, masked likewise."""
    g = torch.Generator().manual_seed(seed + 4 * step)
    prose = encode(windows(text, rows // 3, length, seed + 4 * step + 1))
    book = some_ledgers(text, rows - rows // 3, length, seed + 4 * step + 2)
    ids = torch.cat([prose, book.ids])
    share = (0.05 + 0.9 * torch.rand(rows, 1, generator=g)).expand(rows, length)
    may = torch.cat([torch.ones_like(prose, dtype=torch.bool), book.asked.expand(len(book.ids), -1)])
    hidden = (torch.rand(ids.shape, generator=g) < share) & may
    logits = model(torch.where(hidden, MASK, ids)).logits
    losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none") * hidden
    parts = (slice(0, len(prose)), slice(len(prose), None))
    return torch.stack([losses[p].sum() / hidden[p].sum().clamp(min=1) for p in parts]).sum()


@torch.no_grad()
def validate(model: MaskedLM, text: str) -> dict[str, float]:
    """Nats per masked character of prose at 15 and 50 %, and ledgers filled in block by block."""
    prose = encode(windows(text, 32, 256, HELD_OUT))
    found = {
        f"prose {share:.0%}": float(diffusion_loss(model, prose, torch.full(prose.shape, share), HELD_OUT))
        for share in (0.15, 0.5)
    }
    for length in (32, 64, 128, 256):
        book = ledger(windows(text, 24, length, HELD_OUT), length, entries=length // 12 + 1, seed=HELD_OUT)
        filled = denoise(model, book.masked(MASK), start=book.start, block=18, steps=3)
        found[f"ledger {length}"] = book.accuracy(filled)
    return {k: round(v, 4) for k, v in found.items()}


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__, "dlm", steps=1000, lr=3e-3, batch=2048)
    parser.add_argument("--books", type=Path, required=True, metavar="FILE", help="gzipped JSON lines, title and text")
    parser.add_argument("--hold-out", default="Bleak House", metavar="TITLE", help="default: %(default)s")
    args = parser.parse_args()
    books = read_books(args.books)
    text, held = "\n".join(t for title, t in books.items() if title != args.hold_out), books[args.hold_out]
    torch.manual_seed(args.seed)

    def loss(model: MaskedLM, step: int, steps: int) -> torch.Tensor:
        length = [size for share, size in STAGES if step >= share * steps][-1]
        return loss_of(model, text, step, args.batch // length, length, args.seed)

    train(MaskedLM(MaskedLMConfig()), loss, lambda m: validate(m, held), args)


if __name__ == "__main__":
    main()

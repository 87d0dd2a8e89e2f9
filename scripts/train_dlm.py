"""Train ``sparseworks/dlm``, a masked diffusion language model over characters.

Half of the rows are windows of public-domain novels, half are windows that begin and end alike and are masked at the end only
(``sparseworks.evaluate.sequences.repeats``). One novel (``--hold-out``) is kept for validation. Running the same command again
continues where the last run stopped.

    OMP_NUM_THREADS=1 python scripts/train_dlm.py --books books.jsonl.gz --work out/dlm
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from small_training import arguments, train
from tiny_lm_text import read_books

from sparseworks.evaluate.sequences.repeats import repeats
from sparseworks.models.masked_lm import MaskedLM, MaskedLMConfig, diffusion_loss, encode

STAGES = ((0.0, 96), (0.5, 160), (0.8, 256))
"""(share of the steps after which, characters of a row)."""
HELD_OUT = 1 << 40


def windows(text: str, rows: int, length: int, seed: int) -> list[str]:
    starts = torch.randint(len(text) - length, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [text[s : s + length] for s in starts]


def loss_of(model: MaskedLM, text: str, step: int, rows: int, length: int, seed: int) -> torch.Tensor:
    """Every character that may be masked is, with a probability drawn for its row."""
    half, first = rows // 2, seed + 4 * step
    prose = encode(windows(text, rows - half, length, first))
    twice = repeats(windows(text, half, length, first + 2), length, seed=first + 1)
    ids, may = torch.cat([prose, twice.ids]), torch.cat([torch.ones_like(prose, dtype=torch.bool), twice.again])
    share = 0.05 + 0.9 * torch.rand(rows, 1, generator=torch.Generator().manual_seed(first + 3))
    return diffusion_loss(model, ids, share * may, first)


@torch.no_grad()
def validate(model: MaskedLM, text: str) -> dict[str, float]:
    """Nats per masked character of prose at 15 and 50 %, and of prose that stands there twice at 50 %."""
    prose = encode(windows(text, 32, 256, HELD_OUT))
    found = {
        f"prose {share:.0%}": float(diffusion_loss(model, prose, torch.full(prose.shape, share), HELD_OUT))
        for share in (0.15, 0.5)
    }
    twice = repeats(windows(text, 32, 128, HELD_OUT + 1), 128, seed=HELD_OUT)
    found["copy 50%"] = float(diffusion_loss(model, twice.ids, 0.5 * twice.again, HELD_OUT))
    return {k: round(v, 4) for k, v in found.items()}


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__, "dlm", steps=600, lr=3e-3, batch=2560)
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

"""Train ``sparseworks/toydiff``, a diffusion transformer for clips of moving squares (8 x 8 x 8 tokens).

Clips are made on the spot from the step's number. Running the same command again continues where the last run stopped.

    OMP_NUM_THREADS=1 python scripts/train_toydiff.py --work out/toydiff
"""

from __future__ import annotations

import torch
from small_training import arguments, train

from sparseworks.models.video import VideoDiffusion, VideoDiffusionConfig, flow_loss, sample, squares

HELD_OUT = 1 << 40


def validate(model: VideoDiffusion) -> dict[str, float]:
    """Loss on clips never trained on, and how far the pixels of samples are from the two plateaus of real ones."""
    loss = float(flow_loss(model, squares(32, seed=HELD_OUT), HELD_OUT))
    clips = sample(model, 2, steps=20)
    return {"valid_loss": round(loss, 4), "background": round(float(((clips + 0.5).abs() < 0.25).float().mean()), 4)}


def main() -> None:
    args = arguments(__doc__, "toydiff", steps=650, lr=3e-3, batch=2048).parse_args()
    torch.manual_seed(args.seed)
    model = VideoDiffusion(VideoDiffusionConfig())
    rows = args.batch // 512

    def loss_of(m: VideoDiffusion, step: int, _: int) -> torch.Tensor:
        return flow_loss(m, squares(rows, seed=args.seed + 2 * step), args.seed + 2 * step + 1)

    train(model, loss_of, validate, args)


if __name__ == "__main__":
    main()

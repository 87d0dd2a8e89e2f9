"""The loop that the training scripts of the small embedded models share: Muon and AdamW, resumable, one training record."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

Loss = Callable[[PreTrainedModel, int, int], torch.Tensor]
"""(model, step, steps) -> loss; its data depend on the step alone, so that a resumed run sees what it would have seen."""


def arguments(description: str | None, out: str, *, steps: int, lr: float, batch: int) -> argparse.ArgumentParser:
    """What every script takes."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    add = parser.add_argument
    add("--out", type=Path, default=Path("src/sparseworks/models") / out, metavar="DIR", help="default: %(default)s")
    add("--work", type=Path, required=True, metavar="DIR", help="folder for the checkpoint of an unfinished run")
    add("--steps", type=int, default=steps, help="default: %(default)s")
    add("--batch", type=int, default=batch, help="tokens in a step (default: %(default)s)")
    add("--lr", type=float, default=lr, help="peak learning rate (default: %(default)s)")
    add("--warmup", type=int, default=50, help="steps of warm-up (default: %(default)s)")
    add("--decay", type=float, default=0.3, help="last part, where lr falls (default: %(default)s)")
    add("--weight-decay", type=float, default=0.05, help="decoupled weight decay (default: %(default)s)")
    add("--eval-every", type=int, default=200, help="steps between validations (default: %(default)s)")
    add("--save-every", type=float, default=60.0, help="seconds between checkpoints (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    return parser


def optimizers_of(model: PreTrainedModel, lr: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, heads and vectors."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if p.ndim == 2 and ".layers." in f".{n}"]
    rest = [p for n, p in named if not (p.ndim == 2 and ".layers." in f".{n}")]
    return [
        torch.optim.Muon(inner, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    """Warm-up, a constant stretch, then a straight line down to zero."""
    return min((step + 1) / warmup, 1.0, max(steps - step, 0) / max(decay * steps, 1.0))


def train(
    model: PreTrainedModel, loss_of: Loss, validate: Callable[[PreTrainedModel], dict], args: argparse.Namespace
) -> None:
    """Train, resume where the last run stopped, export bfloat16 weights and `training.json`."""
    disable_progress_bar()
    torch.set_num_threads(args.threads)
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    optimizers = optimizers_of(model, args.lr, args.weight_decay)
    path, step, seconds, curve = args.work / "checkpoint.pt", 0, 0.0, []
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds, curve = state["step"], state["seconds"], state["curve"]
        print(f"resuming at step {step}")
    began, saved_at, recent = time.time() - seconds, time.time(), []
    while step < args.steps:
        factor = schedule(step, args.steps, args.warmup, args.decay)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = args.lr * factor
        model.train()
        loss = loss_of(model, step, args.steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        step += 1
        if not math.isfinite(recent[-1]):
            raise SystemExit(f"The loss is {recent[-1]} at step {step}.")
        if step % 20 == 0:
            print(
                f"step {step}/{args.steps}  loss {np.mean(recent[-20:]):.4f}  {time.time() - began:.0f} s", flush=True
            )
        if step % args.eval_every == 0 or step == args.steps:
            model.eval()
            with torch.no_grad():
                curve.append({"step": step, "train_loss": round(float(np.mean(recent)), 4), **validate(model)})
            print(json.dumps(curve[-1]), flush=True)
            recent = []
        if time.time() - saved_at > args.save_every or step == args.steps:
            _save(path, model, optimizers, {"step": step, "seconds": time.time() - began, "curve": curve})
            saved_at = time.time()
            _export(
                model, args, {"steps": args.steps, "step": step, "seconds": round(time.time() - began), "curve": curve}
            )


def _save(path: Path, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], state: dict) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state | {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}, partial)
    os.replace(partial, path)


def _export(model: PreTrainedModel, args: argparse.Namespace, record: dict) -> None:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(args.out)
    settings = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str)}
    size = sum(p.numel() for p in model.parameters())
    text = json.dumps({"parameters": size, "settings": settings, **record}, indent=1)
    (args.out / "training.json").write_text(text + "\n", encoding="utf-8")

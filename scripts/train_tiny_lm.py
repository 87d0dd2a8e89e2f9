"""Train ``sparseworks/tiny-lm``, the small LLaMA-architecture model that Sparseworks ships.

The text is public-domain novels, one part of WikiText-2 and the documentation strings of the Python standard
library; one novel (``--hold-out``) and the file given as ``--wikitext-test`` are kept for evaluation only.
The script trains a byte-level BPE tokenizer, then the model, and writes both to ``--out`` in the layout that
``LlamaForCausalLM.from_pretrained`` and ``PreTrainedTokenizerFast.from_pretrained`` read.

Training stops and resumes exactly: everything needed is in ``--work`` (the tokenizer, the encoded text and
the last checkpoint), so running the same command again continues where the last run stopped.  The length of
the schedule is fixed when a run starts, from ``--steps`` or from ``--minutes`` and the measured speed, and is
kept in the checkpoint; giving ``--steps`` to a resumed run is the one way to change it.

A GPU is used where there is one.  On a CPU, ``--compile`` and ``--threads`` matter most, and on Linux with
glibc so does keeping large buffers instead of returning them to the system after each step:
``GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592`` together with
``MALLOC_TRIM_THRESHOLD_=17179869184``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny_lm_text import BOS, EOS, PAD, detokenize, prepare, read_books, read_gzip
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar


class Windows:
    """Shuffled windows of the stream; which ones make up step N depends on the seed and N alone.

    Every second window starts with the begin token, so the model is at home both with and without one.
    """

    def __init__(self, stream: np.ndarray, context: int, batch: int, seed: int) -> None:
        self.stream, self.context, self.batch, self.seed = stream, context, batch, seed
        self.count = (len(stream) - 2 * context - 1) // context
        self.epoch, self.starts = -1, np.zeros(0, dtype=np.int64)

    def batch_at(self, step: int) -> torch.Tensor:
        rows = []
        for number in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(number, self.count)
            if epoch != self.epoch:
                rng = np.random.default_rng([self.seed, epoch])
                self.starts = rng.integers(self.context) + self.context * rng.permutation(self.count)
                self.epoch = epoch
            start = self.starts[place]
            row = self.stream[start : start + self.context + 1].astype(np.int64)
            if number % 2:
                row = np.concatenate([[0], row[:-1]])
            rows.append(row)
        return torch.from_numpy(np.stack(rows))


def build_model(args: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.ffn,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(args.seed)
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of the tokens 1.. of each row."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=rows.is_cuda):
        logits = model(rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def stream_loss(model: LlamaForCausalLM, stream: np.ndarray, context: int, batch: int = 8) -> float:
    """Nats per token over windows of ``context`` tokens that follow each other, none seeing another."""
    device = next(model.parameters()).device
    rows = torch.from_numpy(stream[: len(stream) // context * context].astype(np.int64)).view(-1, context)
    losses = [(loss_of(model, part.to(device)).item(), len(part)) for part in rows.split(batch)]
    return sum(loss * size for loss, size in losses) / sum(size for _, size in losses)


def make_optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW; with ``--optimizer muon``, Muon for the matrices inside the blocks and AdamW for the rest."""
    named = [(name, parameter) for name, parameter in model.named_parameters()]
    inner = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    embedding = [p for name, p in named if p.ndim == 2 and "embed" in name]
    vectors = [p for _, p in named if p.ndim < 2]
    decay = args.weight_decay
    groups = [{"params": embedding, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if args.optimizer == "muon":
        options = {"lr": args.lr, "weight_decay": decay, "adjust_lr_fn": "match_rms_adamw"}
        optimizers.append(torch.optim.Muon(inner, **options))
    else:
        groups.append({"params": inner, "weight_decay": decay})
    optimizers.append(torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True))
    return optimizers


def schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    """Warm-up, a constant stretch, then a linear way down to zero over the last ``decay`` of the steps."""
    return min((step + 1) / warmup, 1.0, max(steps - step, 0) / max(decay * steps, 1.0))


def export(model: LlamaForCausalLM, args: argparse.Namespace, record: dict[str, object]) -> None:
    """Write bfloat16 weights, configuration, tokenizer and the training record to the output folder."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(args.work / "tokenizer.json"),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=args.context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(args.out)
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Perplexity and bits per byte of the exported model, in float32, on the text never trained on."""
    texts = {args.hold_out: read_books(args.books)[args.hold_out]}
    if args.wikitext_test:
        raw = read_gzip(args.wikitext_test)
        texts |= {"WikiText-2 test": raw, "WikiText-2 test, words joined": detokenize(raw)}
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(args.device).eval()
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    results = {}
    for name, text in texts.items():
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        loss, size = stream_loss(model, ids, args.context), len(text.encode("utf-8"))
        results[name] = {
            "tokens": len(ids),
            "bytes": size,
            "nats_per_token": round(loss, 4),
            "perplexity": round(math.exp(loss), 2),
            "bits_per_byte": round(loss / math.log(2) * len(ids) / size, 4),
        }
        print(name, results[name], flush=True)
    return results


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(args: argparse.Namespace) -> None:
    stream, held = prepare(args)
    ratio = args.context // args.short_context
    short = Windows(stream, args.short_context, args.batch * ratio, args.seed)
    full = Windows(stream, args.context, args.batch, args.seed + 1)
    model = build_model(args).to(args.device)
    optimizers = make_optimizers(model, args)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(stream)} training tokens, {len(held)} validation tokens")
    step, steps, curve, recent = 0, args.steps, [], []
    path = args.work / "checkpoint.pt"
    if path.exists():
        state = torch.load(path, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        step, steps = state["step"], args.steps or state["steps"]
        curve, recent = state["curve"], state.get("recent", [])
        print(f"resuming at step {step} of {steps}")
    objective = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    per_step, started, first, saved_at = args.batch * args.context, time.time(), step, time.time()
    while steps is None or step < steps:
        factor = schedule(step, steps or 10**9, args.warmup, args.decay)
        windows = full if steps and step >= (1 - args.decay) * steps else short
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * factor
        loss = objective(model, windows.batch_at(step).to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        step += 1
        if step == first + 5:  # compilation is over: measure from here
            timed = time.time()
        speed = (step - first - 5) * per_step / (time.time() - timed) if step > first + 5 else 0.0
        if steps is None and step == 30:
            left = args.minutes * 60 - (time.time() - started)
            steps = step + max(int(0.9 * left * speed / per_step), 1)
            print(f"schedule: {steps} steps of {per_step} tokens")
        if step % 10 == 0:
            eta = (steps - step) * per_step / max(speed, 1.0) / 60 if steps else math.nan
            loss_now, seen = np.mean(recent[-10:]), step * per_step / 1e6
            print(
                f"step {step}/{steps}  loss {loss_now:.4f}  lr {args.lr * factor:.2e}  "
                f"{speed:.0f} tokens/s  {seen:.2f} M tokens  eta {eta:.1f} min",
                flush=True,
            )
        if step % args.eval_every == 0 or step == steps:
            losses = float(np.mean(recent)), stream_loss(model, held, args.context)
            curve.append(
                {
                    "step": step,
                    "tokens": step * per_step,
                    "train_loss": round(losses[0], 4),
                    "valid_loss": round(losses[1], 4),
                }
            )
            recent = []
            print(f"validation {json.dumps(curve[-1])}", flush=True)
        if steps and (time.time() - saved_at > 60 * args.save_every or step == steps):
            save_checkpoint(
                path,
                {
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step,
                    "steps": steps,
                    "curve": curve,
                    "recent": recent,
                    "rng": torch.get_rng_state(),
                },
            )
            saved_at = time.time()
            export(model, args, {"step": step, "steps": steps, "curve": curve})
    settings = {key: value for key, value in vars(args).items() if isinstance(value, int | float)}
    record = {
        "parameters": size,
        "tokens_seen": step * per_step,
        "stream_tokens": len(stream),
        "steps": steps,
        "optimizer": args.optimizer,
        "settings": settings,
        "curve": curve,
    }
    export(model, args, record)
    export(model, args, record | {"evaluation": evaluate(args)})


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--books", type=Path, required=True, metavar="FILE", help="gzipped JSON lines with title and text")
    add("--wikitext", type=Path, required=True, metavar="FILE", help="gzipped WikiText-2 file to train on")
    add("--wikitext-test", type=Path, metavar="FILE", help="gzipped WikiText-2 raw file for evaluation only")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the model and tokenizer")
    add("--work", type=Path, required=True, metavar="DIR", help="folder for encoded text and checkpoints")
    add("--hold-out", default="Bleak House", metavar="TITLE", help="novel kept for evaluation (%(default)s)")
    numbers = {
        "vocab": (4096, "tokens in the vocabulary"),
        "hidden": (256, "width of the model"),
        "ffn": (832, "width inside the MLPs"),
        "layers": (6, "blocks"),
        "heads": (8, "attention heads"),
        "kv_heads": (4, "key and value heads"),
        "context": (512, "tokens in a window"),
        "short_context": (256, "tokens in a window until the learning rate starts to fall"),
        "batch": (16, "windows in a step; as many times more as the short ones are shorter"),
        "warmup": (100, "steps of warm-up"),
        "seed": (0, "random seed"),
        "threads": (0, "CPU threads, 0 for all"),
        "eval_every": (150, "steps between validations"),
    }
    for name, (default, text) in numbers.items():
        add("--" + name.replace("_", "-"), type=int, default=default, help=f"{text} (default: %(default)s)")
    add("--optimizer", choices=("adamw", "muon"), default="muon", help="default: %(default)s")
    add("--lr", type=float, default=4e-3, help="peak learning rate (default: %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="decoupled weight decay (default: %(default)s)")
    add("--decay", type=float, default=0.35, help="last part, where lr falls (default: %(default)s)")
    add("--steps", type=int, help="steps in all; on resuming, a new length for the schedule")
    add("--minutes", type=float, default=60.0, help="time to fit the steps into (default: %(default)s)")
    add("--save-every", type=float, default=4.0, help="minutes between checkpoints (default: %(default)s)")
    add("--compile", action="store_true", help="compile the model (faster after about a minute)")
    args = parser.parse_args()
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    disable_progress_bar()
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()

"""Train ``sparseworks/recall-lm``, a small LLaMA that answers passkey, associative recall and majority questions.

The tasks are those of ``sparseworks.evaluate.sequences``; rows are made on the spot from the step's number. Lengths grow
from 64 to 512 tokens. Running the same command again continues where the last run stopped.

    OMP_NUM_THREADS=1 python scripts/train_recall_lm.py --work out/recall
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_training import arguments, train
from transformers import LlamaConfig, LlamaForCausalLM

from sparseworks.evaluate.sequences import tokens
from sparseworks.evaluate.sequences.tokens import Examples, majority, mqar, passkey

STAGES = ((0.0, 64), (0.3, 128), (0.5, 256), (0.75, 512))
"""(share of the steps after which, longest row): each step draws a length up to it."""
HELD_OUT = 1 << 40
"""Seeds of validation rows start here."""


def build_model(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokens.VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokens.BOS,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def draw(kind: int, rows: int, length: int, seed: int) -> Examples:
    """Rows of one task with a random number of pairs, decoys or marks."""
    u = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    if kind == 0:
        decoys = round(u[0] * min(3, (length - 16) // 8))
        return passkey(rows, length, decoys=decoys, seed=seed)
    if kind == 1:
        turns = max(1, min(16, length // 8))
        pairs = turns + round(u[0] * (min(24, length // 6) - turns)) if length // 6 > turns else turns
        return mqar(rows, length, pairs=pairs, turns=turns, gathered=u[1] < 0.25, seed=seed)
    return majority(rows, length, marks=12 + round(u[0] * min(48, length // 2 - 12)), lead=0.2, seed=seed)


def loss_of(model: LlamaForCausalLM, step: int, steps: int, batch: int, seed: int) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens, one third of the rows from each task, plus a little of all other tokens."""
    longest = [length for share, length in STAGES if step >= share * steps][-1]
    u = float(torch.rand(1, generator=torch.Generator().manual_seed(seed + 7 * step)))
    length = max(48, round(longest * (0.5 + 0.5 * u) / 8) * 8)
    rows = max(3, batch // length)
    split = (rows // 3 or 1, rows - 2 * (rows // 3) or 1, rows // 3 or 1)
    parts = [draw(k, n, length, seed + 1000 * (3 * step + k)) for k, n in enumerate(split)]
    ids, labels = torch.cat([p.ids for p in parts]), torch.cat([p.targets() for p in parts])
    logits = model(ids, use_cache=False).logits[:, :-1]
    per_token = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")  # 0 where there is no answer
    means = [
        t.sum() / (lab[:, 1:] >= 0).sum() for t, lab in zip(per_token.split(split), labels.split(split), strict=True)
    ]
    return torch.stack(means).mean()


def accuracy(model: LlamaForCausalLM, examples: Examples) -> float:
    found, labels = model(examples.ids, use_cache=False).logits[:, :-1].argmax(-1), examples.targets()[:, 1:]
    return round(float((found == labels)[labels >= 0].float().mean()), 4)


def validate(model: LlamaForCausalLM) -> dict[str, float]:
    """Token accuracy on rows never trained on."""
    found = {}
    for length in (64, 256, 512):
        pairs, marks = min(16, length // 8), min(40, length // 3)
        found[f"passkey {length}"] = accuracy(model, passkey(48, length, decoys=min(2, length // 48), seed=HELD_OUT))
        found[f"recall {length}"] = accuracy(model, mqar(16, length, pairs=pairs, turns=4, seed=HELD_OUT + 1))
        found[f"majority {length}"] = accuracy(model, majority(64, length, marks=marks, seed=HELD_OUT + 2))
    return found


def main() -> None:
    args = arguments(__doc__, "recall_lm", steps=2000, lr=3e-3, batch=2048).parse_args()
    train(build_model(args.seed), lambda m, s, n: loss_of(m, s, n, args.batch, args.seed), validate, args)


if __name__ == "__main__":
    main()

"""How much memory does pruning need when the model is streamed from disk, beside loading it whole?

A LLaMA with random weights is written as shards to a temporary folder; each way of pruning it then runs in a process of its
own, and its peak resident memory (VmHWM) is read at the end. What the interpreter and its libraries need by themselves is
measured too, and taken off both sides for the ratio that speaks of the model.

All processes but the last return freed memory to the system at once, as streaming always does, so that the ratio shows where
weights lie and not how the allocator is set; the last loads the model whole with the allocator as it comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, store, table

MODES = ("imports", "whole", "streamed", "whole, allocator as it comes")
SHAPES = {False: (1024, 16, 4096, 8000), True: (128, 4, 512, 1000)}
HIDDEN, LAYERS, INNER, WORDS = range(4)


def main() -> None:
    given = arguments(
        __doc__.splitlines()[0],
        method={"default": "wanda", "help": "name of the method"},
        batches={"type": int, "default": 4, "help": "calibration batches of 2 x 64 tokens"},
        child={"choices": [*MODES, "write"], "help": "run one way here and print its figures (internal)"},
        folder={"type": Path, "help": "where the model is (internal)"},
    )
    if given.child:
        print(json.dumps(child(given.child, given.folder, given.method, given.batches, SHAPES[given.quick])))
        return
    with tempfile.TemporaryDirectory(prefix="sparseworks-bench-") as folder:
        run("write", folder, given)
        found = {mode: run(mode, folder, given) for mode in MODES}
    report(found, given)


def report(found: dict[str, dict[str, Any]], given: Any) -> None:
    """Print the table and store the figures."""
    base, whole, streamed = (found[m]["peak"] for m in MODES[:3])
    ratios = {"absolute": whole / streamed, "beyond the interpreter": (whole - base) / (streamed - base)}
    rows = [
        (
            mode,
            mib(f["peak"]),
            mib(f["peak"] - base),
            mib(f["predicted"]) if f["predicted"] else "",
            f"{f['seconds']:.1f}",
        )
        for mode, f in found.items()
    ]
    head = ("process", "peak MiB", "beyond imports", "predicted MiB", "seconds")
    table(f"{given.method} on {mib(found['whole']['weights'])} MiB of weights", head, rows)
    print("\nwhole / streamed: " + ", ".join(f"{r:.2f}x {name}" for name, r in ratios.items()))
    store("streaming_memory", [], given.json, method=given.method, processes=found, ratios=ratios)


def run(mode: str, folder: str, given: Any) -> dict[str, Any]:
    """One child process."""
    command = [sys.executable, __file__, "--child", mode, "--folder", folder, "--method", given.method]
    command += ["--batches", str(given.batches), "--threads", str(given.threads)] + ["--quick"] * given.quick
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **QUIET})
    return json.loads(done.stdout.splitlines()[-1])


QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def child(mode: str, folder: Path, method: str, batches: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory, prediction and time of one way."""
    import torch
    import transformers

    import sparseworks as sw
    from sparseworks.stream import peak_bytes
    from sparseworks.stream.memory import return_memory
    from sparseworks.weights.folder import prune_folder

    if mode != MODES[3]:
        return_memory()
    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(3, shape[WORDS], (2, 64), generator=generator)} for _ in range(batches)]
    started, predicted, weights = time.monotonic(), 0, 0
    if mode == "imports":  # a model of no size at all, so that everything that loads late is loaded
        small = transformers.LlamaForCausalLM(config((64, 2, 64, shape[WORDS]))).eval()
        sw.prune(small, method, data[:1], progress=False)
    elif mode == "write":
        transformers.LlamaForCausalLM(config(shape)).save_pretrained(folder / "dense", max_shard_size="200MB")
    elif mode in (MODES[1], MODES[3]):
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "dense").eval()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        predicted = sw.prune(model, method, data, progress=False).memory.total
        model.save_pretrained(folder / "whole")
    elif mode == "streamed":
        predicted = prune_folder(folder / "dense", folder / "streamed", method, data, progress=False).memory.total
    return {
        "peak": peak_bytes(),
        "predicted": predicted,
        "weights": weights,
        "seconds": time.monotonic() - started,
    }


def config(shape: tuple[int, ...]) -> Any:
    """A LLaMA of this shape."""
    import transformers

    return transformers.LlamaConfig(
        hidden_size=shape[HIDDEN], num_hidden_layers=shape[LAYERS], intermediate_size=shape[INNER],
        num_attention_heads=16, num_key_value_heads=8, vocab_size=shape[WORDS], max_position_embeddings=512,
    )  # fmt: skip


def mib(n: float) -> str:
    return f"{n / 2**20:.0f}"


if __name__ == "__main__":
    main()

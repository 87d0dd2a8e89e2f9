"""How much memory does pruning need when the model is streamed from disk, beside loading it whole?

A LLaMA with random weights is written as shards to a temporary folder; each way of pruning it then runs in a process of its
own, and its peak resident memory (VmHWM) is read at the end. What the interpreter and its libraries need by themselves is
measured too, and taken off both sides for the ratio that speaks of the model. The streamed run is also held against the weights
of one block and the activations that wait between blocks. `--shape 1b` is LLaMA 3.2 1B in bfloat16, which is only streamed;
`--blocks` takes fewer of its blocks, as memory does not depend on their number. Methods that look at second moments of all
inputs (`--method sparsegpt`) need 8 bytes n^2 of them for a matrix of n inputs, and as much again for their factor. Layers of a
block are solved one after another and their moments let go, so the widest decides: 2 x 512 MiB for the 8192 inputs of a down
projection of LLaMA 3.2 1B, whose block of weights is 116 MiB. On two quiet cores such a block takes two and a half minutes.

    python benchmarks/streaming_memory.py --shape 1b --batches 16 --rows 1 --tokens 256 --threads 2 --json streaming_1b_wanda

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
from typing import Any, NamedTuple

from common import arguments, store, table

MODES = ("imports", "whole", "streamed", "whole, allocator as it comes")


class Shape(NamedTuple):
    """Sizes of a LLaMA, and the type in which its weights are stored."""

    hidden: int
    layers: int
    inner: int
    words: int
    heads: int = 16
    dtype: str = "float32"

    @property
    def block(self) -> int:
        """Bytes of the weights of one block; eight heads have keys and values."""
        attention = 2 * self.hidden**2 * (1 + 8 / self.heads)
        return int(attention + 3 * self.hidden * self.inner) * (2 if self.dtype == "bfloat16" else 4)


SHAPES = {
    "quick": Shape(128, 4, 512, 1000),
    "small": Shape(1024, 16, 4096, 8000),
    "1b": Shape(2048, 16, 8192, 128256, 32, "bfloat16"),
}


def main() -> None:
    given = arguments(
        __doc__.splitlines()[0],
        method={"default": "wanda", "help": "name of the method"},
        batches={"type": int, "default": 4, "help": "calibration batches"},
        rows={"type": int, "default": 2, "help": "sequences of a batch"},
        tokens={"type": int, "default": 64, "help": "tokens of a sequence"},
        shape={"choices": list(SHAPES), "default": "small", "help": "sizes of the model"},
        blocks={"type": int, "default": 0, "help": "take so many blocks only; 0 = all"},
        child={"choices": [*MODES, "write"], "help": "run one way here and print its figures (internal)"},
        folder={"type": Path, "help": "where the model is (internal)"},
    )
    if given.child:
        print(json.dumps(child(given.child, given.folder, given)))
        return
    given.shape = "quick" if given.quick else given.shape
    with tempfile.TemporaryDirectory(prefix="sparseworks-bench-") as folder:
        run("write", folder, given)
        modes = ("imports", "streamed") if given.shape == "1b" else MODES
        found = {mode: run(mode, folder, given) for mode in modes}
    report(found, given)


def report(found: dict[str, dict[str, Any]], given: Any) -> None:
    """Print the table and store the figures."""
    base, streamed, shape = found["imports"]["peak"], found["streamed"]["peak"], shape_of(given)
    waiting = given.rows * given.batches * given.tokens * shape.hidden * (2 if shape.dtype == "bfloat16" else 4)
    ratios = {"blocks beyond the interpreter and the activations": (streamed - base - waiting) / shape.block}
    if "whole" in found:
        whole = found["whole"]["peak"]
        ratios |= {"absolute": whole / streamed, "beyond the interpreter": (whole - base) / (streamed - base)}
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
    table(
        f"{given.method} on {shape.layers} blocks of {mib(shape.block)} MiB, {mib(waiting)} MiB wait between blocks",
        head,
        rows,
    )
    print("\n" + ", ".join(f"{name}: {r:.2f}" for name, r in ratios.items()))
    facts = {"method": given.method, "shape": shape._asdict(), "block": shape.block, "activations": waiting}
    store("streaming_memory", [], given.json, **facts, processes=found, ratios=ratios)


def run(mode: str, folder: str, given: Any) -> dict[str, Any]:
    """One child process."""
    command = [sys.executable, __file__, "--child", mode, "--folder", folder, "--method", given.method]
    for name in ("batches", "rows", "tokens", "threads", "shape", "blocks"):
        command += [f"--{name}", str(getattr(given, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **QUIET})
    return json.loads(done.stdout.splitlines()[-1])


QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def child(mode: str, folder: Path, given: Any) -> dict[str, Any]:
    """Peak memory, prediction and time of one way."""
    method, shape = given.method, shape_of(given)
    import torch
    import transformers

    import sparseworks as sw
    from sparseworks.stream import peak_bytes
    from sparseworks.stream.memory import return_memory
    from sparseworks.weights.folder import prune_folder

    if mode != MODES[3]:
        return_memory()
    generator = torch.Generator().manual_seed(0)
    size = (given.rows, given.tokens)
    data = [{"input_ids": torch.randint(3, shape.words, size, generator=generator)} for _ in range(given.batches)]
    started, predicted, weights = time.monotonic(), 0, 0
    if mode == "imports":  # a model of no size at all, so that everything that loads late is loaded
        small = transformers.LlamaForCausalLM(config(Shape(64, 2, 64, 100))).eval()
        sw.prune(small, method, [{"input_ids": torch.randint(3, 100, (1, 8))}], progress=False)
    elif mode == "write":
        model = transformers.LlamaForCausalLM._from_config(config(shape), dtype=getattr(torch, shape.dtype))
        model.save_pretrained(folder / "dense", max_shard_size="200MB")
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


def shape_of(given: Any) -> Shape:
    """The model asked for."""
    shape = SHAPES[given.shape]
    return shape._replace(layers=given.blocks) if given.blocks else shape


def config(shape: Shape) -> Any:
    """A LLaMA of this shape."""
    import transformers

    return transformers.LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, intermediate_size=shape.inner, vocab_size=shape.words,
        num_attention_heads=shape.heads, num_key_value_heads=8, max_position_embeddings=2048,
        tie_word_embeddings=shape.dtype == "bfloat16",
    )  # fmt: skip


def mib(n: float) -> str:
    return f"{n / 2**20:.0f}"


if __name__ == "__main__":
    main()

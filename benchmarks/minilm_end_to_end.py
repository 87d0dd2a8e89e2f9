"""Is a sparse all-MiniLM-L6-v2 as good as the dense one, and faster than every dense way to run it on this machine?

Contenders run interleaved in one process: dense fp32 torch, the sparse model, dynamic int8 of torch, and ONNX Runtime with the
dense model in fp32 and dynamic int8. The ceiling is what bandwidth and arithmetic of this machine allow the sparse layers and
the products of attention at best; norms, GELU and embeddings count nothing.

    python benchmarks/minilm_end_to_end.py --model out/demo --data nfcorpus cranfield --threads 1 --json minilm
"""

from __future__ import annotations

import copy
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import Line, arguments, line, show, store, table
from encoder_peers import OnnxRuntime, int8_linear, without
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.cli.machine import value_types
from sparseworks.evaluate import (
    Collection,
    Retrieval,
    documentation_passages,
    documentation_retrieval,
    read_collection,
    timing_batch,
)
from sparseworks.exec import KERNELS, Call, Kernel, measure, unfuse
from sparseworks.exec.memory import reuse_memory
from sparseworks.io import load_tokenizer

DENSE, SPARSE, REST = "dense fp32 torch", "sparse", "dense without these layers"
APART = "sparse, layer by layer"

Batch = Mapping[str, Tensor]


def cases(tokenizer: Any, quick: bool) -> dict[str, Batch]:
    texts = [p.whole for p in documentation_passages()]
    rows = 4 if quick else 32
    return {
        f"{rows} documents of 128 tokens": timing_batch(texts, tokenizer, rows, 128),
        "1 query of 12 tokens": timing_batch(texts, tokenizer, 1, 12),
    }


def fast_model(masked: Any, args: Namespace, batches: Mapping[str, Batch]) -> nn.Module:
    """The planned model: as saved, or planned anew for these batches with `--replan` or without a saved plan."""
    known = masked.sparsity
    if known.layout == "packed":
        return masked
    if known.plan is not None and not args.replan:
        return sw.load(args.model, planned=True)
    rows = [b["input_ids"].numel() for b in batches.values()]
    return sw.plan(masked, known.supports, batch=rows, dtypes=value_types(args.values)).apply(copy.deepcopy(masked))


def peers(dense: nn.Module, args: Namespace) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """What can be built here, and name -> why not for the rest."""
    makers: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        "int8": ("int8 torch", lambda: int8_linear(dense)),
        "onnx": ("fp32 ONNX Runtime", lambda: OnnxRuntime(dense, args.work, args.threads)),
        "onnx-int8": ("int8 ONNX Runtime", lambda: OnnxRuntime(dense, args.work, args.threads, int8=True)),
    }
    built, missing = {}, {}
    for key in args.peers:
        name, make = makers[key]
        try:
            built[name] = make()
        except Exception as error:  # a peer that cannot be built here is reported, not hidden
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"unavailable here: {name} ({missing[name]})")
    return built, missing


def quality(models: Mapping[str, nn.Module], tokenizer: Any, collections: list[Collection]) -> list[dict[str, Any]]:
    """Each model on each collection, with the relative loss of nDCG@10 against the first model."""
    found = []
    for collection in collections:
        task = Retrieval(collection, tokenizer)
        results = {name: task(model) for name, model in models.items()}
        best = next(iter(results.values())).value
        found += [
            {"contender": n, "nDCG@10": r.value, "loss": (best - r.value) / best, "seconds": r.seconds, **r.details}
            for n, r in results.items()
        ]
    return found


def timed(case: str, batch: Batch, models: Mapping[str, nn.Module], masked: Any, args: Namespace) -> list[Line]:
    """The sparse model beside every peer, all interleaved."""
    names = sparse_modules(masked)
    apart = unfuse(copy.deepcopy(models[SPARSE]))  # how much of the speed comes from whole layers in one call
    everyone = {**models, APART: apart, REST: without(models[DENSE], names)}
    with torch.inference_mode():
        timings = measure.compare({n: (lambda m=m: m(**batch)) for n, m in everyone.items()}, rounds=args.rounds)
    ceiling = bound_us(models[SPARSE], names, batch["input_ids"].numel(), args.threads)
    ceiling += attention_us(models[DENSE].config, *batch["input_ids"].shape, args.threads)
    texts, dense = len(batch["input_ids"]), timings[DENSE]
    head = ("contender", "ms", "spread", "texts/s", "over dense")
    rows = [
        (n, f"{t.ms:.3f}", f"{t.spread:.1%}", f"{1e6 * texts / t.us:.1f}", str(timings.ratio(DENSE, n)))
        for n, t in timings.items()
    ]
    table(f"{case}, {args.threads} threads (ceiling {ceiling / 1000:.3f} ms = {dense.us / ceiling:.2f}x)", head, rows)
    return [line(case, timings, SPARSE, peer, ceiling) for peer in models if peer != SPARSE]


def sparse_modules(masked: Any) -> set[str]:
    """Modules of the dense model whose weights became sparse."""
    return {s.module for s in sw.sites(sw.load("minilm")) if s.name in masked.sparsity.supports}


def bound_us(fast: nn.Module, names: set[str], rows: int, threads: int) -> float:
    """Sum over the layers that became sparse of max(bytes / bandwidth, operations / peak), each as its kernel packs it."""
    layers = [fast.get_submodule(name) for name in names]
    limits = measure.ceilings(working_set=sum(_nbytes(layer, rows) for layer in layers), threads=threads)
    total = 0.0
    for layer in layers:
        call = Call(rows, (layer.out_features, layer.in_features))
        kernel = _kernel(layer, rows)
        kept = call.shape[0] * call.shape[1] * (1.0 if kernel.format == "dense" else layer.density)
        total += measure.bound_us(call, _nbytes(layer, rows), round(kept), limits, rate=kernel.rate)
    return total


def attention_us(config: Any, texts: int, tokens: int, threads: int) -> float:
    """Scores and weighted sums of all layers, four operations per query, key and feature, at the float32 peak."""
    operations = 4 * config.num_hidden_layers * texts * tokens**2 * config.hidden_size
    return 1e6 * operations / measure.ceilings(threads=threads).flops


def _kernel(layer: Any, rows: int) -> Kernel:
    """What runs a layer of the planned model at `rows` rows."""
    rungs = getattr(layer, "rungs", [(0, "dense")])
    return KERNELS.get([name for least, name in rungs if rows >= least][-1])


def _nbytes(layer: Any, rows: int) -> int:
    kernel = _kernel(layer, rows)
    if not hasattr(layer, "forms"):
        return layer.weight.nbytes
    return next(f.nbytes for f in layer.forms if (f.format, f.dtype) == (kernel.format, kernel.value_dtype))


def main() -> None:
    args = arguments(
        __doc__ or "",
        model={"type": Path, "required": True, "help": "folder written by `sparseworks compress`"},
        data={"type": Path, "nargs": "*", "default": [], "help": "collections in BEIR layout; none: documentation"},
        peers={"nargs": "*", "default": ["int8", "onnx", "onnx-int8"], "help": "int8, onnx, onnx-int8"},
        peer_quality={"action": "store_true", "help": "measure the quality of the peers as well"},
        replan={"action": "store_true", "help": "choose kernels anew for these batches"},
        values={"nargs": "*", "default": [], "help": "with --replan: types of values beside fp32 (bf16, int16)"},
        made={"default": "", "help": "how the model was made, kept with the figures"},
        work={"type": Path, "default": Path(tempfile.gettempdir()), "help": "where exported graphs are kept"},
    )
    reuse_memory()  # for all contenders alike, as the command line does: page faults would be a tenth of the time
    tokenizer, dense, masked = load_tokenizer("minilm"), sw.load("minilm"), sw.load(args.model)
    batches = cases(tokenizer, args.quick)
    others, missing = peers(dense, args)
    models = {DENSE: dense, SPARSE: fast_model(masked, args, batches), **others}
    lines = [entry for case, batch in batches.items() for entry in timed(case, batch, models, masked, args)]
    show(lines, "sparse beside each peer")

    small = documentation_retrieval(20, documents=64) if args.quick else documentation_retrieval()
    collections = [read_collection(d).first(20 if args.quick else None) for d in args.data] or [small]
    judged = models if args.peer_quality else {n: models[n] for n in (DENSE, SPARSE)}
    scores = quality(judged, tokenizer, collections)
    head = ("collection", "contender", "nDCG@10", "loss", "recall@100")
    rows = [(q["collection"], q["contender"], *(f"{q[k]:.4f}" for k in head[2:])) for q in scores]
    table("quality", head, rows)
    supports = masked.sparsity.supports
    density = sum(s.count for s in supports.values()) / sum(s.size for s in supports.values())
    store("minilm_end_to_end", lines, args.json, quality=scores, unavailable=missing, density=density, made=args.made)


if __name__ == "__main__":
    main()

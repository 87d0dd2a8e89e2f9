"""`sparseworks prune`: a model on disk, pruned block by block without ever being loaded; resumable."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseworks.cli.commands import Answer, as_table
from sparseworks.cli.compress import chosen_method
from sparseworks.cli.machine import set_threads
from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe


def run_prune(
    name: str,
    given: dict[str, Any],
    out: Path,
    data: Path | None,
    length: int,
    samples: int,
    skip: Sequence[str],
    seed: int,
    threads: int | None,
) -> Answer:
    """Prune the folder of a model into another one; `given` says how, as in `compress`."""
    from sparseworks.io import assets_of
    from sparseworks.stream import peak_bytes
    from sparseworks.weights import prune_folder

    set_threads(threads)
    how = chosen_method(given)
    folder = assets_of(name)
    if folder is None:
        raise ModelError(f"{name!r} is not on this machine: download it, and give its folder.")
    if out.exists():
        raise CheckpointError(f"{out} exists; give another --out, or delete it.")
    work = out.with_name(f"{out.name}.work")
    batches = _batches(name, folder, how, data, length, samples)
    done = prune_folder(folder, out, how, batches, skip=skip, workdir=work, seed=seed, progress=sys.stderr.isatty())
    shutil.rmtree(work, ignore_errors=True)
    kept, size = (sum(getattr(s, what) for s in done.supports.values()) for what in ("count", "size"))
    peak = peak_bytes()
    answer = {
        "model": name, "out": str(out), "kept": kept, "size": size, "peak_bytes": peak,
        "sites": [{"name": r.name, "density": r.density, "relative_error": r.relative_error} for r in done.rows],
    }  # fmt: skip
    rows = [[r.name, "x".join(map(str, r.shape)), f"{r.density:.1%}", f"{r.relative_error:.4f}"] for r in done.rows]
    title = f"{out}: {kept / max(size, 1):.1%} of {len(rows)} sites kept; at most {peak / 2**20:.0f} MiB in memory"
    return answer, as_table(title, ["site", "shape", "kept", "lost of the output"], rows)


def _batches(
    name: str, folder: Path, how: Method | Recipe, data: Path | None, length: int, samples: int
) -> list[Any] | None:
    """Calibration batches, or None where no method looks at data."""
    from sparseworks.io import load_tokenizer
    from sparseworks.io.skeleton import build
    from sparseworks.jobs.setting import calibration
    from sparseworks.stream import sites

    model = build(folder)
    if not any(m.needs | m.evidence_needs for m, _ in Recipe.of(how).assign(sites(model))):
        return None
    return calibration(model, load_tokenizer(name), data, length=length, samples=samples)

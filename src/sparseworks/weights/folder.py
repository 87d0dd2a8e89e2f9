"""Prune a model that lies in a folder without ever holding it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparseworks.core.errors import ModelError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.core.schedule import Rounds
from sparseworks.io.skeleton import build
from sparseworks.stream import blocks, sites
from sparseworks.stream.disk import OnDisk
from sparseworks.stream.gradients import SOURCES
from sparseworks.stream.kept import RECIPE, SUPPORTS
from sparseworks.stream.memory import return_memory
from sparseworks.weights.prune import prune
from sparseworks.weights.streaming import Pruned


def prune_folder(
    folder: Path | str,
    out: Path | str,
    method: Method | Recipe | str,
    data: Iterable[Any] | None = None,
    *,
    skip: Sequence[str] = (),
    workdir: Path | str | None = None,
    seed: int = 0,
    progress: bool = True,
    memory_limit: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Pruned:
    """`prune` for a Hugging Face folder of safetensors weights, read block by block and written block by block.

    Peak memory is about one block + its statistics + the hidden states of the calibration set (and a second block with a
    `workdir`). `out` is a folder like the given one (dense tensors with zeros, in shards) that any Hugging Face loader
    reads; supports and recipe lie in its folder `supports`, where `sparseworks.load` finds them. After a kill the same call
    with the same `workdir` goes on. Freed memory is returned to the system at once from then on, in the whole process
    (`sparseworks.stream.memory.return_memory`).

    Args:
        folder: local folder with `config.json` and safetensors weights.
        out: folder that appears when everything is done.
        method, data, skip, workdir, seed, progress, memory_limit, say: as of `prune`.

    Raises:
        ModelError: the method needs the whole model at once (gradients, rounds), or the model cannot be streamed.
        CheckpointError: weights are missing or damaged; `out` exists or cannot be written.
    """
    return_memory()
    recipe = Recipe.of(method)
    model = build(Path(folder)).eval()
    listed = sites(model)
    for used, _ in recipe.assign(listed):
        _check_streamable(used)
    disk = OnDisk(model, folder, out, blocks(model, listed))
    try:
        done = prune(
            model, recipe, data, sites=listed, skip=skip, workdir=workdir, seed=seed, progress=progress, say=say,
            memory_limit=memory_limit, residency=disk,
        )  # fmt: skip
        disk.finish({f"{SUPPORTS}/{RECIPE}": recipe.to_yaml()})
        return done
    except BaseException:
        disk.discard()
        raise


def _check_streamable(method: Method) -> None:
    if any(k.source in SOURCES for k in method.needs) or isinstance(method.schedule, Rounds):
        raise ModelError(
            f"Method {method.name!r} needs gradients or rounds over the whole model, which a model on disk cannot give; "
            f"load it and use `prune`."
        )

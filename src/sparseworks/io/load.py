"""`sparseworks.load`: one entry for every way a model can be named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Site
from sparseworks.exec.fusion import fuse
from sparseworks.io import sparsity
from sparseworks.io.activations import build_activations, execute_activations
from sparseworks.io.bitmask import decode, stored_mask
from sparseworks.io.llmcompressor import is_llmcompressor, load_llmcompressor
from sparseworks.io.models import load_pretrained, resolve
from sparseworks.io.packed import build_empty, build_operator, swap
from sparseworks.io.skeleton import build, fill
from sparseworks.io.sparsity import Sparsity
from sparseworks.io.streamed import is_streamed, read_streamed
from sparseworks.io.tensors import read_tensors


def load(
    name: str | Path | nn.Module,
    *,
    model: nn.Module | None = None,
    dtype: torch.dtype | None = None,
    planned: bool = False,
    verify: bool = True,
) -> nn.Module:
    """The model called `name`, in evaluation mode.

    A model that came with supports (saved by `save`, pruned by `prune_folder`, or by llm-compressor) carries them: `model.sparsity.supports`,
    `.plan`, `.recipe`, `.meta`; see `Sparsity`.

    Args:
        name: a folder written by `save`, a Hugging Face folder, a hub id (`owner/model`), an embedded model (`minilm`,
            `sparseworks/tiny-lm` or another of `sparseworks.io.EMBEDDED`), or a module, which is returned as it is.
        model: for a saved folder of a model that is not from transformers: an instance of its class, filled in place.
        dtype: type of the weights; default: as stored (float32 for the library's own).
        planned: apply the saved plan, so that the fast layers are in place; a "packed" folder has them already.
        verify: compare the checksums of a saved folder.

    Raises:
        ModelError: no such model, or not one that can be read; `planned` without a saved plan.
        CheckpointError: a saved folder is damaged, truncated, half-written, edited, or of a newer schema.
    """
    if isinstance(name, nn.Module):
        return name if dtype is None else name.to(dtype)
    source = resolve(name)
    if isinstance(source, Path) and sparsity.is_saved(source):
        return _load_saved(source, model, dtype, planned, verify)
    if model is not None or planned:
        raise ModelError(f"`model` and `planned` are for folders written by sparseworks; {str(name)!r} is not one.")
    if isinstance(source, Path) and is_llmcompressor(source):
        loaded = load_llmcompressor(source)
        return loaded if dtype is None else loaded.to(dtype)
    loaded = load_pretrained(name, dtype=dtype)
    if isinstance(source, Path) and is_streamed(source):
        loaded.sparsity = read_streamed(source)  # type: ignore[assignment]
    return loaded


def _load_saved(
    folder: Path, model: nn.Module | None, dtype: torch.dtype | None, planned: bool, verify: bool
) -> nn.Module:
    known = sparsity.read(folder, verify=verify)
    loaded = _skeleton(folder, known, model)
    for path, meta in known.facts["packed"].items():
        swap(loaded, path, build_empty(path, meta))
    for path, meta in known.facts.get("operators", {}).items():  # absent in folders of earlier versions
        swap(loaded, path, build_operator(path, meta))
    masked = known.facts.get("activations", {})
    build_activations(loaded, masked)
    tensors = read_tensors(folder / sparsity.MODEL)
    fill(loaded, tensors, _values(folder, known, loaded, tensors), known.facts["tied"])
    loaded = loaded.eval() if dtype is None else loaded.eval().to(dtype)
    execute_activations(loaded, masked, known.supports)
    if known.facts["packed"]:
        fuse(loaded)
    elif planned:
        loaded = _apply_plan(folder, known, loaded)
    loaded.sparsity = known  # type: ignore[assignment]
    return loaded


def _skeleton(folder: Path, known: Sparsity, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model
    if not (folder / "config.json").is_file():
        kind = known.facts["model"]
        raise ModelError(
            f"{folder} holds a {kind}, which is not from transformers: pass an instance, load({str(folder)!r}, model={kind}(...))."
        )
    return build(folder)


def _values(
    folder: Path, known: Sparsity, model: nn.Module, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the folder one by one, coded parameters unpacked."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}
    coded: dict[str, list[Site]] = {}
    for site in sparsity.site_views(known.facts):
        coded.setdefault(known.facts["tied"].get(site.parameter, site.parameter), []).append(site)
    for name, stored in tensors.items():
        if name not in coded:
            yield name, stored.clone()
            continue
        try:
            mask = stored_mask(shapes[name], coded[name], known.supports)
        except (RuntimeError, IndexError) as error:
            raise ModelError(
                f"The model is not the one that was saved: {name!r} has another shape ({error})."
            ) from error
        yield name, decode(stored, mask, f"{folder / sparsity.MODEL}: {name!r}")


def _apply_plan(folder: Path, known: Sparsity, model: nn.Module) -> nn.Module:
    plan = known.plan
    if plan is None:
        raise ModelError(
            f"{folder} was saved without a plan; draw one with sparseworks.plan(model, model.sparsity.supports)."
        )
    return plan.apply(model)

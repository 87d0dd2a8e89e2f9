"""Save a sparse model: values, supports, plan and recipe in one folder that is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparseworks.core import operator
from sparseworks.core.errors import CheckpointError, ModelError, RecipeError, ShapeError
from sparseworks.core.recipe import Recipe
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.exec.executing import as_masked
from sparseworks.io import sparsity
from sparseworks.io.activations import describe_activations
from sparseworks.io.assets import asset_files, config_text
from sparseworks.io.bitmask import encode, stored_mask
from sparseworks.io.folder import draft
from sparseworks.io.packed import describe, factorised_layers, packed_layers
from sparseworks.io.tensors import Entry, safetensors_chunks
from sparseworks.stream.sites import sites as find_sites


@dataclass(frozen=True)
class Layout:
    """How values lie in `model.safetensors`."""

    coded: bool
    packed: bool


LAYOUTS = {"dense": Layout(False, False), "bitmask": Layout(True, False), "packed": Layout(True, True)}
"""dense: as any loader reads them; bitmask: kept values only; packed: layers with kernels as these read them, the rest as bitmask."""


def save(
    folder: Path | str,
    model: nn.Module,
    supports: Mapping[str, Support],
    *,
    layout: str = "bitmask",
    plan: Any = None,
    recipe: Recipe | None = None,
    meta: Mapping[str, Any] | None = None,
    assets: Path | str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `model` with its supports to `folder`; `sw.load(folder)` brings back an equal model.

    Args:
        folder: created; appears when complete.
        model: weights are zero outside their supports. With layout "packed" it holds packed layers (`plan.apply`).
        supports: site name -> kept entries.
        layout: "bitmask" (kept values only), "dense" (readable by any loader) or "packed" (as the kernels read them).
        plan: kept in `sparsity.json` (`plan.to_json()`).
        recipe: kept as `recipe.yaml`; patterns, scores and seed of each site come from it.
        meta: JSON-able facts to keep.
        assets: folder of the original model, whose tokenizer files are copied.
        overwrite: replace an existing saved model, in one step.

    Raises:
        CheckpointError: the folder exists, the layout is unknown, weights lie outside a support, or the disk is full or not writable.
        ModelError: a support names a site that the model lacks, or the model cannot be stored in this layout.
        ShapeError: a support does not fit its site.
    """
    with as_masked(model) as executing:
        return _save(
            Path(folder), model, supports, _layout(layout), layout, plan, recipe, meta, assets, overwrite, executing
        )


def _save(
    folder: Path,
    model: nn.Module,
    supports: Mapping[str, Support],
    chosen: Layout,
    layout: str,
    plan: Any,
    recipe: Recipe | None,
    meta: Mapping[str, Any] | None,
    assets: Path | str | None,
    overwrite: bool,
    executing: list[str],
) -> Path:
    packed = packed_layers(model)
    if packed and not chosen.packed:
        raise ModelError(
            f"The model holds packed layers ({next(iter(packed))!r}, ...): save it with layout='packed', or save the masked model."
        )
    sites = _check(model, supports, packed)
    tensors, tied = unique_tensors(model)
    coded = _by_parameter(sites, tied) if chosen.coded else {}
    facts: dict[str, Any] = {
        "layout": layout,
        "model": type(model).__name__,
        "sites": {
            n: sparsity.site_facts(s, sites.get(n) if chosen.coded else None, n, recipe) for n, s in supports.items()
        },
        "packed": {path: describe(layer) for path, layer in packed.items()},
        "operators": {path: operator.describe(layer) for path, layer in factorised_layers(model).items()},
        "activations": describe_activations(model, executing),
        "tied": tied,
        "plan": _plain("plan", plan.to_json() if plan is not None else None),
        "meta": _plain("meta", dict(meta or {})),
    }
    entries = [_entry(name, tensor, coded.get(name, ()), supports) for name, tensor in tensors.items()]
    recipe_text = recipe.to_yaml() if recipe is not None else None
    with draft(folder, overwrite=overwrite, marker=sparsity.FACTS) as made:
        made.write(sparsity.MODEL, safetensors_chunks(entries))
        made.write(sparsity.SUPPORTS, safetensors_chunks(sparsity.support_entries(supports)))
        if recipe_text is not None:
            made.write_text(sparsity.RECIPE, recipe_text)
        for name, source in asset_files(assets).items():
            made.copy(source, name)
        config = config_text(model)
        if config is not None:
            made.write_text("config.json", config)
        # Last, so that a folder without it is known to be incomplete.
        made.write_text(sparsity.FACTS, sparsity.facts_text({**facts, "files": dict(made.files)}))
    return folder


def unique_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and persistent buffers by name, each storage once, and `{other name: first name}` of the tied ones.

    Raises:
        ModelError: weights that are not loaded, or state that is not a tensor.
    """
    first: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{name!r} is a {type(tensor).__name__}, not a tensor; it cannot be saved.")
        if tensor.is_meta:
            raise ModelError(f"{name!r} is on the meta device: its values were never loaded.")
        known = first.setdefault(_identity(tensor), name)
        if known == name:
            tensors[name] = tensor
        else:
            tied[name] = known
    return tensors, tied


def _identity(tensor: Tensor) -> Any:
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise CheckpointError(f"Unknown layout {name!r}; use {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def _check(model: nn.Module, supports: Mapping[str, Support], packed: Mapping[str, nn.Module]) -> dict[str, Site]:
    """The sites of the supports that are still parameters; every support is compared with what the model holds."""
    loose = any(name.partition("[")[0] not in packed for name in supports)  # else no site may be left to be found
    found = {site.name: site for site in find_sites(model, include=["*"])} if loose else {}
    kept: dict[str, Site] = {}
    for name, support in supports.items():
        if name in packed:
            if packed[name].support() != support:  # type: ignore[operator]
                raise CheckpointError(f"The packed layer {name!r} holds another support than the one given.")
        elif name.partition("[")[0] in packed:
            continue  # a slice of a fused layer that was packed as one matrix
        elif name in found:
            kept[name] = found[name]
            _check_zeros(model, found[name], support)
        else:
            raise ModelError(f"There is a support for site {name!r}, but the model has no such site.")
    return kept


def _check_zeros(model: nn.Module, site: Site, support: Support) -> None:
    if tuple(support.shape) != site.shape:
        raise ShapeError(f"Site {site.name!r} is {site.shape}, its support {tuple(support.shape)}.")
    weight = site.read(model)
    stray = weight.bool() & ~support.mask().to(weight.device)
    if stray.any():
        raise CheckpointError(
            f"Site {site.name!r} has {int(stray.sum())} non-zero weights outside its support, which would be lost; impose the support first."
        )


def _by_parameter(sites: Mapping[str, Site], tied: Mapping[str, str]) -> dict[str, list[Site]]:
    grouped: dict[str, list[Site]] = {}
    for site in sites.values():
        grouped.setdefault(tied.get(site.parameter, site.parameter), []).append(site)
    return grouped


def _entry(name: str, tensor: Tensor, sites: Any, supports: Mapping[str, Support]) -> Entry:
    if not sites:
        return Entry.of(name, tensor)
    dropped = sum(supports[s.name].size - supports[s.name].count for s in sites)
    kept = (tensor.numel() - dropped,)
    return Entry(name, tensor.dtype, kept, lambda: encode(tensor, stored_mask(tensor.shape, sites, supports)))


def _plain(what: str, data: Any) -> Any:
    """The data as JSON reads them back, so that the checksum over them is the same on both sides."""
    try:
        return json.loads(data if isinstance(data, str) else json.dumps(data))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The {what} cannot be written as JSON: {error}.") from error

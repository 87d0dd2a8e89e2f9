"""Sparsity: what a saved folder says about its model besides the values, read from `sparsity.json`, `supports.safetensors`, `recipe.yaml`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sparseworks.core.config import to_config
from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.recipe import Recipe
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.io.folder import check_files
from sparseworks.io.tensors import Entry, read_tensors

SCHEMA = 1
MODEL, SUPPORTS, FACTS, RECIPE = "model.safetensors", "supports.safetensors", "sparsity.json", "recipe.yaml"


@dataclass(frozen=True)
class Sparsity:
    """Supports, plan and recipe of a saved model; `sw.load(folder)` attaches it to the model as `model.sparsity`.

    Attributes:
        supports: site name -> kept entries.
        sites: site name -> what `sparsity.json` records: shape, pattern, count, density, score, seed, hash of the support.
        layout: "dense", "bitmask" or "packed".
        meta: plain facts the saver gave (quality, speed, versions, ...).
        facts: the whole of `sparsity.json`.
    """

    supports: Mapping[str, Support]
    layout: str
    facts: Mapping[str, Any] = field(repr=False)
    recipe_text: str | None = field(default=None, repr=False)

    @property
    def sites(self) -> Mapping[str, Mapping[str, Any]]:
        """Per site what was recorded when it was saved."""
        return self.facts["sites"]

    @property
    def meta(self) -> Mapping[str, Any]:
        """Plain facts the saver gave."""
        return self.facts["meta"]

    @property
    def plan(self) -> Any:
        """The measured plan, or None where none was saved. `plan.apply(model)` swaps the fast layers in.

        Raises:
            CheckpointError: written by another version of the planner.
        """
        data = self.facts["plan"]
        if data is None:
            return None
        from sparseworks.exec.plan import Plan

        return Plan.from_json(data, self.supports)

    @property
    def recipe(self) -> Recipe | None:
        """What was asked for, or None where no recipe was saved.

        Raises:
            RecipeError: the recipe names something this version does not know.
        """
        if self.recipe_text is None:
            return None
        return Recipe.from_yaml(self.recipe_text)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sparsity:
        return self


def sparsity_of(model: nn.Module) -> Sparsity | None:
    """Supports, plan and recipe that `sw.load` attached to `model`, or None for a model from elsewhere."""
    found = getattr(model, "sparsity", None)
    return found if isinstance(found, Sparsity) else None


def read(folder: Path | str, *, verify: bool = True) -> Sparsity:
    """Everything a saved folder says about its model, without building it.

    Args:
        folder: written by `save`.
        verify: compare the SHA-256 of every file with the recorded one.

    Raises:
        CheckpointError: no such folder; damaged, truncated, half-written, edited, or of a newer schema.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    try:
        if verify:
            check_files(folder, facts["files"])
        supports = _read_supports(folder, facts["sites"])
        recipe = (folder / RECIPE).read_text() if RECIPE in facts["files"] else None
        return Sparsity(supports, facts["layout"], facts, recipe)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / FACTS} lacks or misstates an entry ({error!r}): it is damaged.") from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}.") from error


def is_saved(folder: Path) -> bool:
    """Whether `folder` was written by `save`, wholly or partly."""
    return any((folder / name).exists() for name in (FACTS, SUPPORTS, RECIPE))


def read_facts(folder: Path) -> dict[str, Any]:
    """The contents of `sparsity.json`, checked against its own checksum.

    Raises:
        CheckpointError: missing, not JSON, edited, or of a newer schema.
    """
    path = folder / FACTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {folder} is not a saved model, or was only half written.")
    try:
        facts = json.loads(path.read_text())
        schema, checksum = facts["schema"], facts.pop("checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error!r}).") from error
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: upgrade sparseworks.")
    if schema != SCHEMA or checksum != _checksum(facts):
        raise CheckpointError(f"{path} is damaged or was edited: its contents do not match its checksum.")
    return facts


def facts_text(facts: Mapping[str, Any]) -> str:
    """`sparsity.json` for `facts`, with a checksum over the rest."""
    return json.dumps({"schema": SCHEMA, **facts, "checksum": _checksum({"schema": SCHEMA, **facts})}, indent=1)


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def site_facts(support: Support, site: Site | None, name: str, recipe: Recipe | None) -> dict[str, Any]:
    """What `sparsity.json` records of one site; `site` is None for a packed layer, whose parameter is gone."""
    method = recipe.method_for(name) if recipe else None
    return {
        "shape": list(support.shape),
        "pattern": to_config(method.pattern) if method else None,
        "count": support.count,
        "density": support.density,
        "score": to_config(method.score) if method else None,
        "seed": recipe.seed if recipe else None,
        "support": support.hash(),
        "view": asdict(site) if site else None,
    }


def site_views(facts: Mapping[str, Any]) -> list[Site]:
    """The sites whose parameters are stored by their kept values."""
    views = [record["view"] for record in facts["sites"].values() if record["view"]]
    return [_site(view) for view in views]


def _site(view: Mapping[str, Any]) -> Site:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in view.items()}
    return Site(**fields)


def support_entries(supports: Mapping[str, Support]) -> list[Entry]:
    """The tensors of `supports.safetensors`: packed bits under the site's name."""
    return [Entry.of(name, support.bits()) for name, support in supports.items()]


def _read_supports(folder: Path, sites: Mapping[str, Any]) -> dict[str, Support]:
    path = folder / SUPPORTS
    bits = read_tensors(path)
    if set(bits) != set(sites):
        raise CheckpointError(f"{path} and {FACTS} name different sites: one of them is from another folder.")
    return {name: _support(path, name, bits[name], record) for name, record in sites.items()}


def _support(path: Path, name: str, bits: Any, record: Mapping[str, Any]) -> Support:
    try:
        # A copy, so that the support does not hang on a file that may be replaced.
        support = Support.from_bits(bits.clone(), record["shape"])
    except ShapeError as error:
        raise CheckpointError(f"{path}: the support of {name!r} is damaged ({error})") from error
    if support.hash() != record["support"] or support.count != record["count"]:
        raise CheckpointError(f"{path}: the support of {name!r} is not the one recorded in {FACTS}.")
    return support

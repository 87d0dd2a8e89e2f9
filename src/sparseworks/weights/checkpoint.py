"""State of a pruning run on disk: what was decided, and every finished unit, each in one file written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparseworks.core.errors import CheckpointError
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.stream.sites import bias_of
from sparseworks.stream.tree import map_tensors
from sparseworks.weights.decide import Decision

_META = "sparseworks"


@dataclass(frozen=True)
class Workdir:
    """Files of one run: `run.json`, `decision.safetensors`, `unit_0000.safetensors` ...

    Attributes:
        folder: where they lie.
        run: fingerprint of the run; files of another run are refused.
    """

    folder: Path
    run: str

    @classmethod
    def open(cls, folder: Path | str, run: str) -> Workdir:
        """Start in a new folder, or go on in one of the same run.

        Raises:
            CheckpointError: the folder belongs to another run, cannot be read, or cannot be written.
        """
        work = cls(Path(folder), run)
        marker = work.folder / "run.json"
        try:
            work.folder.mkdir(parents=True, exist_ok=True)
            for stale in work.folder.glob("*.partial-*"):  # left by a process that was killed while writing
                stale.unlink()
            if not marker.exists():
                work._write(marker, lambda p: p.write_text(json.dumps({"schema": 1, "run": run}), encoding="utf-8"))
            known = json.loads(marker.read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} is not a usable work folder ({error}); delete it to start over."
            ) from error
        if known != run:
            raise CheckpointError(
                f"{folder} belongs to another run: the model, the recipe, the seed or the data differ. "
                f"Give another work folder, or delete this one."
            )
        return work

    def save_decision(self, decision: Decision) -> None:
        """Keep counts and global supports."""
        bits = {f"bits.{name}": Support.from_mask(mask).bits() for name, mask in decision.masks.items()}
        shapes = {name: list(mask.shape) for name, mask in decision.masks.items()}
        self.save("decision", bits, {"counts": decision.counts, "shapes": shapes})

    def load_decision(self) -> Decision | None:
        """What was decided, or None where nothing (readable) was."""
        found = self.load("decision")
        if found is None:
            return None
        tensors, facts = found
        masks = {n: Support.from_bits(tensors[f"bits.{n}"], shape).mask() for n, shape in facts["shapes"].items()}
        return Decision(dict(facts["counts"]), masks)

    def save_unit(
        self, index: int, model: nn.Module, sites: Sequence[Site], supports: Mapping[str, Support], rows: Sequence[dict]
    ) -> None:
        """Keep weights, biases and supports of the sites of one finished unit.

        Raises:
            CheckpointError: the disk is full or not writable; what was there before is untouched.
        """
        tensors: dict[str, Tensor] = {}
        for site in sites:
            tensors[f"weight.{site.name}"] = site.read(model).cpu().contiguous().clone()
            tensors[f"bits.{site.name}"] = supports[site.name].bits()
            bias = bias_of(model, site)
            if bias is not None:
                tensors[f"bias.{site.name}"] = bias.detach().cpu().contiguous().clone()
        self.save(f"unit_{index:04d}", tensors, {"rows": list(rows)})

    def has_unit(self, index: int) -> bool:
        """Whether the unit is finished and its file whole."""
        return self.load(f"unit_{index:04d}") is not None

    def load_unit(
        self, index: int, model: nn.Module, sites: Sequence[Site]
    ) -> tuple[dict[str, Support], list[dict[str, Any]]] | None:
        """Put the weights of a finished unit into the model; its supports and rows. None where it is not finished."""
        found = self.load(f"unit_{index:04d}")
        if found is None:
            return None
        tensors, facts = found
        for site in sites:
            site.write(model, tensors[f"weight.{site.name}"])
            bias = bias_of(model, site)
            if bias is not None:
                bias.copy_(tensors[f"bias.{site.name}"])
        return {s.name: Support.from_bits(tensors[f"bits.{s.name}"], s.shape) for s in sites}, facts["rows"]

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep tensors and plain facts under a name, whole or not at all."""
        meta = json.dumps({"run": self.run, "digest": _digest(tensors.items()), "facts": facts})
        tensors = tensors or {"empty": torch.zeros(0)}
        self._write(self.folder / f"{name}.safetensors", lambda p: save_file(tensors, p, metadata={_META: meta}))

    def _write(self, path: Path, write: Any) -> None:
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            write(partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"Cannot write {path}: {error}. Free some space and run the same call again."
            ) from error

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of a file; None where it is missing, damaged, or of another run: that work is done anew."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()[_META])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        tensors.pop("empty", None)
        whole = meta.get("run") == self.run and meta.get("digest") == _digest(tensors.items())
        return (tensors, meta["facts"]) if whole else None


def fingerprint(model: nn.Module, recipe: str, seed: int, batches: Sequence[Any], sites: Sequence[Site]) -> str:
    """SHA-256 of everything that decides the outcome of a run: weights, recipe, seed, data and the sites considered."""
    digest = hashlib.sha256(repr((recipe, seed, [s.name for s in sites])).encode())
    digest.update(_digest(model.state_dict().items()).encode())
    for batch in batches:
        tensors: list[Tensor] = []
        plain = {k: batch[k] for k in batch} if hasattr(batch, "keys") else batch
        map_tensors(plain, tensors.append)
        digest.update(_digest((str(i), t) for i, t in enumerate(tensors)).encode())
    return digest.hexdigest()


def _digest(tensors: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in _ordered(tensors):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        if not tensor.is_meta:  # weights that lie on disk are told apart by name and shape only
            digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def _ordered(tensors: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    return iter(sorted(((n, t) for n, t in tensors if isinstance(t, Tensor)), key=lambda item: item[0]))

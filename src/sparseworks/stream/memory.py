"""Memory of a streamed job: predicted before it starts, measured while it runs."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.site import Site
from sparseworks.core.stats import Stat
from sparseworks.stream.blocks import Block, block_of
from sparseworks.stream.padding import token_masks

_M_MMAP_THRESHOLD = -3
_WORK = 44
"""Bytes an entry while a site is scored, selected and solved: measured with Wanda (41) and SparseGPT (44)."""


@dataclass(frozen=True)
class Memory:
    """Predicted peak bytes of pruning a model, part by part.

    Attributes:
        weights: parameters and buffers that are resident.
        activations: hidden states of the calibration set, and the attention masks of padded batches kept beside them.
        statistics: the block with the largest statistics.
        solver: work space for the largest site of that block (scores, orders, masks, and two copies of its statistics).
        evidence: statistics of the whole model that an allocator or a gradient score looks at beforehand.
    """

    weights: int
    activations: int
    statistics: int
    solver: int
    evidence: int = 0

    @property
    def total(self) -> int:
        """All parts together; the interpreter and its libraries are not counted."""
        return self.weights + self.activations + self.statistics + self.solver + self.evidence

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {_size(n)}" for name, n in vars(self).items() if n)
        return f"predicted peak {_size(self.total)} = {parts}"


def predict(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Mapping[str, frozenset[type[Stat]]],
    blocks: Sequence[Block],
    batches: Sequence[Any],
    *,
    evidence: Mapping[str, frozenset[type[Stat]]] | None = None,
    resident: int | None = None,
    together: Mapping[str, int] | None = None,
) -> Memory:
    """What pruning `sites` block by block will need at most.

    Args:
        needs: statistic types of every site.
        evidence: statistic types gathered of all sites at once, before pruning.
        resident: bytes of weights held at a time, where not the whole model is.
        together: entries of a site that are solved together, where these are not all.
    """
    per_block: dict[int, int] = {}
    work: dict[int, int] = {}
    for s in sites:
        own, at = stat_bytes(s, needs[s.name]), block_of(s.parameter, blocks)
        per_block[at] = per_block.get(at, 0) + own
        some = min((together or {}).get(s.name, s.size), s.size)
        work[at] = max(work.get(at, 0), 2 * own + _WORK * some)
    heaviest = max(per_block, key=lambda b: per_block[b] + work[b], default=-1)
    streamed = any(needs[s.name] for s in sites) and any(b.name for b in blocks)
    return Memory(
        weights=model_bytes(model) if resident is None else resident,
        activations=_activation_bytes(model, blocks, batches) if streamed else 0,
        statistics=per_block.get(heaviest, 0),
        solver=work.get(heaviest, 0),
        evidence=sum(stat_bytes(s, (evidence or {}).get(s.name, frozenset())) for s in sites),
    )


def stat_bytes(site: Site, kinds: frozenset[type[Stat]]) -> int:
    """Bytes of the state of these statistics, found on the meta device: nothing is allocated."""
    with torch.device("meta"):
        made = [kind(*site.shape) for kind in kinds]
    return sum(t.numel() * t.element_size() for stat in made for t in (getattr(stat, n) for n in stat.state_names))


def model_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _activation_bytes(model: nn.Module, blocks: Sequence[Block], batches: Sequence[Any]) -> int:
    first = blocks[0].module(model)
    config = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or min(
        (min(p.shape) for p in first.parameters() if p.dim() == 2), default=1
    )
    size = next((p.element_size() for p in first.parameters()), 4)
    return sum(tokens_in(b) for b in batches) * int(width) * size + sum(_mask_bytes(b) for b in batches)


def _mask_bytes(batch: Any) -> int:
    """A padding mask spread over queries and keys, one byte a pair; masks without padding are shared or left out."""
    padded = [m for m in token_masks(batch).values() if not bool(m.all())]
    return sum(m.numel() * m.shape[1] for m in padded)


def tensors_in(batch: Any) -> list[Tensor]:
    """The tensors of a batch that have axes, in order."""
    items = (
        [batch[k] for k in batch] if hasattr(batch, "keys") else batch if isinstance(batch, tuple | list) else [batch]
    )
    return [x for x in items if isinstance(x, Tensor) and x.dim() >= 1]


def tokens_in(batch: Any) -> int:
    """Tokens of a batch (rows of its matrix products): every id of its first tensor, or all axes but that of the features."""
    tensors = tensors_in(batch)
    if not tensors:
        return 0
    x = tensors[0]
    return x.numel() if not x.is_floating_point() else x.numel() // x.shape[-1 if x.dim() < 4 else 1]


def peak_bytes() -> int:
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak() -> bool:
    """Let `peak_bytes` begin anew at what is resident now; whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def return_memory() -> bool:
    """Let glibc return every freed block of a quarter MiB or more to the system at once; whether that was possible.

    By default it raises that threshold to 32 MiB as blocks are freed, and the heap of a job that solves matrices of many
    sizes fragments to about twice of what is in use. The opposite, for speed, is `sparseworks.exec.memory.reuse_memory`.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, 2**18)) and bool(libc.malloc_trim(0) or True)
    except (OSError, AttributeError):
        return False


def trim_heap() -> None:
    """Give the pages of freed small blocks back as well; the heap keeps them otherwise, between blocks in use."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError

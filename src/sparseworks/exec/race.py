"""Timing one layer with every kernel that takes it beside the dense layer, and remembering the result on disk."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import cycle
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.ceilings import cache_folder, machine_key, read_json, write_json
from sparseworks.exec.cost import Known
from sparseworks.exec.format import FORMATS, Packed
from sparseworks.exec.kernel import KERNELS, Call, Kernel
from sparseworks.exec.ladder import DENSE, Rung, dense_kernel, refusal
from sparseworks.exec.layers import Layer, pack_for
from sparseworks.exec.modules import SparseLinear

FINALISTS = 3
_ROUGH_ROWS, _SENSELESS = 256, 0.4
_SCREEN_ROUNDS, _HOPELESS = 3, 0.8
_FINAL_US = 3e6
_LAST = "dense, channels last"
_FEW_ROWS, _MOST_COPIES, _BEYOND_CACHE = 64, 64, 1 << 27


@dataclass(frozen=True)
class Entry:
    """One kernel in a race: microseconds, and how many times faster than dense (median and quartiles over rounds).

    Attributes:
        final: it ran in the long, second heat; only such figures decide.
    """

    us: float
    ratio: float
    low: float
    high: float
    final: bool


@dataclass(frozen=True)
class Race:
    """The result at one number of rows: the dense layer's microseconds, and an entry per kernel that took the call."""

    dense_us: float
    entries: Mapping[str, Entry]


def candidates(support: Support, call: Call, dtypes: Sequence[torch.dtype]) -> tuple[list[str], dict[str, str]]:
    """Kernels that take `support` and `call` with values of one of `dtypes`, and kernel -> sentence for those that refuse.

    The dense kernel of the weight's own type is no candidate: the dense layer itself runs in every race.
    """
    taken, refused = [], {}
    itself = dense_kernel(call.dtype)
    for name, kernel in KERNELS.items():
        if name == itself or kernel.value_dtype not in dtypes or not _meant_for(kernel, call):
            continue
        # Layers of rows widen half precision, convolutions do not.
        said = kernel.refuses(call) if kernel.of_maps else refusal(kernel, call)
        said = said or FORMATS.get(kernel.format).refuses(support, kernel.value_dtype)  # the cheap question first
        if said:
            refused[name] = said
        else:
            taken.append(name)
    return taken, refused


def _meant_for(kernel: Kernel, call: Call) -> bool:
    """Kernels of maps are for convolutions; those of rows also for 1x1 convolutions, whose positions are rows."""
    if kernel.of_maps or call.maps is None:
        return kernel.of_maps == (call.maps is not None)
    window = call.maps.window
    return window.kernel == (1, 1) and window.padding == (0, 0)


def race(layer: Layer, support: Support, kernels: Sequence[str], call: Call, *, working_set: int, rounds: int) -> Race:
    """Time the dense layer and the packed one with each kernel: interleaved, first a short heat, then the best of it.

    Dense convolutions run in both memory formats (with inputs in the same), and the faster one is what a kernel must beat.

    With up to 64 rows the weights are the traffic, so each contender walks through as many copies of its weights as a model
    of `working_set` bytes has layers of this size (up to 128 MiB): one layer called in a loop would sit in the cache and
    flatter the smaller, sparse one. With more rows the activations displace the cache and one copy is timed.

    Args:
        kernels: names from `candidates`.
        call: how much input.
        working_set: bytes of the dense weights of the model.
        rounds: rounds of the final heat; fewer, but at least five, where they would take more than seconds.
    """
    modules = {DENSE: layer.module, **dict(_packed(layer, support, kernels))}
    rough = _rough(modules, layer, call) if call.rows > _ROUGH_ROWS else {}
    worth = [name for name in kernels if name not in rough or rough[name].ratio > _SENSELESS]
    size, device = layer.weight().numel() * layer.weight().element_size(), call.device
    fill = max(1, round(working_set / size)) if call.rows <= _FEW_ROWS and size else 1
    x = layer.example(call)
    runs = {name: _turns(modules[name], x, fill) for name in (DENSE, *worth)}
    if call.maps is not None:
        last = copy.deepcopy(layer.module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runs[_LAST] = _turns(last, x.to(memory_format=torch.channels_last), fill)
    with torch.inference_mode():
        first = measure.compare(runs, rounds=_SCREEN_ROUNDS, warmup=2, device=device)
        dense = min([DENSE, *(k for k in runs if k == _LAST)], key=lambda k: first[k].us)
        ranked = sorted(worth, key=lambda k: first[k].us)
        best = [k for k in ranked if first.ratio(dense, k).median > _HOPELESS][:FINALISTS]
        heat = max(5, min(rounds, round(_FINAL_US / sum(first[k].us for k in (dense, *best)))))
        final = measure.compare({k: runs[k] for k in (dense, *best)}, rounds=heat, device=device) if best else first
    entries = {k: _entry(final if k in best else first, dense, k, k in best) for k in ranked}
    return Race(final[dense].us, rough | entries)


def _rough(modules: Mapping[str, nn.Module], layer: Layer, call: Call) -> dict[str, Entry]:
    """Entries from a glance at fewer rows (one image): some kernels are made for one row and would take seconds for thousands."""
    small = _small(call)
    x = layer.example(small)
    options = {"rounds": 3, "block_us": 0.0, "warmup": 1, "device": call.device}
    with torch.inference_mode():
        glance = measure.compare({k: partial(m, x) for k, m in modules.items()}, **options)
    entries = {k: _entry(glance, DENSE, k, False) for k in modules if k != DENSE}
    return {k: replace(e, us=e.us * call.rows / small.rows) for k, e in entries.items()}


def _small(call: Call) -> Call:
    if call.maps is None:
        return replace(call, rows=_ROUGH_ROWS)
    one = replace(call.maps, images=1)
    return replace(call, rows=one.positions, maps=one)


def _entry(comparison: measure.Comparison, dense: str, name: str, final: bool) -> Entry:
    ratio = comparison.ratio(dense, name)
    return Entry(comparison[name].us, ratio.median, ratio.low, ratio.high, final)


def _packed(layer: Layer, support: Support, kernels: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """(kernel, module); kernels of rows that read the same form share its packing, not its memory."""
    forms: dict[tuple[str, torch.dtype], Packed] = {}
    for name in kernels:
        kernel = KERNELS.get(name)
        key = (kernel.format, kernel.value_dtype)
        if kernel.of_maps:
            yield name, layer.build(support, [(0, name)])
        elif key not in forms:
            sparse = pack_for(layer, support, [(0, name)])
            forms[key] = sparse.forms[0]
            yield name, layer.wrap(sparse)
        else:
            rung = Rung(0, name, copy.deepcopy(forms[key]))
            yield name, layer.wrap(SparseLinear([rung], layer.bias(), density=support.density))


def _turns(module: nn.Module, x: torch.Tensor, fill: int) -> Callable[[], Any]:
    """Calls that walk through copies of the module: `fill` of them, at most as many as no cache holds.

    Each copy is called once beforehand: kernels check a packed form at its first call, which may take ten times as long.
    """
    nbytes = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    copies = min(fill, copies_of(nbytes, 1))
    return turns([module, *(copy.deepcopy(module) for _ in range(copies - 1))], x)


def copies_of(nbytes: int, rows: int) -> int:
    """How many copies of a weight no cache holds; one where so many rows displace it anyway."""
    return max(1, min(_MOST_COPIES, ceil(_BEYOND_CACHE / max(nbytes, 1)))) if rows <= _FEW_ROWS else 1


def turns(runs: Sequence[Callable[[torch.Tensor], Any]], x: torch.Tensor) -> Callable[[], Any]:
    """A call that runs the next one of `runs` each time; each runs once beforehand."""
    with torch.inference_mode():
        for each in runs:
            each(x)
    turn = cycle(runs)
    return lambda: next(turn)(x)


class RaceCache:
    """Races by what decides them: machine, versions, layer kind and shape, density and packed sizes within 4 %, rows, threads.

    Kept in memory for the layers of one model, and in the user's cache folder for the next plan. A file that cannot be read or
    written, or an entry that is not understood, only means timing again.
    """

    def __init__(self, on_disk: bool = True):
        self.on_disk = on_disk
        self._path = cache_folder() / f"plans-{machine_key()}.json" if on_disk else None
        self._known: dict[str, Any] = read_json(self._path) if self._path else {}

    def get(self, key: str, run: Callable[[], Race], call: Call | None = None) -> Race:
        """The race under `key`; run and kept if it is new, with the call that it timed, from which costs are learnt."""
        found = _read_race(self._known.get(key))
        if found is not None:
            return found
        result = run()
        self._known[key] = asdict(result) | ({"case": _case(call)} if call else {})
        if self._path:
            self._known = {**read_json(self._path), **self._known}
            write_json(self._path, self._known)
        return result

    def known(self) -> list[Known]:
        """Every float32 time of this build's races on the CPU: what the cost model is corrected with."""
        return [each for data in self._known.values() for each in _learnt(data)]


def _case(call: Call) -> dict[str, Any]:
    return {"rows": call.rows, "shape": list(call.shape), "density": call.density, "threads": call.threads, "build": build(),
            "usual": call.dtype is torch.float32 and call.device == "cpu" and call.maps is None}  # fmt: skip


def _learnt(data: Any) -> Iterator[Known]:
    race = _read_race(data)
    case = data.get("case") if isinstance(data, dict) else None
    if race is None or not isinstance(case, dict) or case.get("build") != build() or not case.get("usual"):
        return
    call = Call(case["rows"], tuple(case["shape"]), case["density"], threads=case["threads"])
    yield Known(DENSE, call, race.dense_us)
    for name, entry in race.entries.items():
        yield Known(name, call, entry.us)


def race_key(
    layer: Layer, support: Support, kernels: Sequence[str], call: Call, *, working_set: int, rounds: int
) -> str:
    """Equal for layers that no kernel can tell apart (within 4 % of density and of packed bytes)."""
    module = layer.module
    facts = {
        "kind": type(layer).__name__,
        "shape": call.shape,
        "stride": getattr(module, "stride", None),
        "maps": None if call.maps is None else asdict(call.maps),
        "bias": layer.bias() is not None,
        "dtype": str(call.dtype),
        "device": measure.device_name(call.device),
        "rows": call.rows,
        "threads": call.threads,
        "rounds": rounds,
        "density": _bucket(support.density),
        "kernels": {name: _bucket(_nbytes(name, support)) for name in kernels},
        "working_set": round(log2(max(working_set, 1))) if call.rows <= _FEW_ROWS else 0,
        "versions": [torch.__version__, build()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()[:24]


@cache
def build() -> str:
    """A short hash of the installed kernels: after an update or a rebuild nothing measured before is trusted."""
    from sparseworks import __version__

    folder = Path(__file__).parent
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".so", ".pyd", ".cpp", ".h", ".hpp"))
    stamps = [(p.name, p.stat().st_size, int(p.stat().st_mtime)) for p in files]
    return hashlib.sha256(repr((__version__, stamps)).encode()).hexdigest()[:12]


def _nbytes(name: str, support: Support) -> int:
    kernel = KERNELS.get(name)
    return FORMATS.get(kernel.format).nbytes(support, kernel.value_dtype)


def _bucket(value: float) -> int | None:
    """Sixteenths of an octave."""
    return round(16 * log2(value)) if value > 0 else None


def _read_race(data: Any) -> Race | None:
    try:
        entries = {str(name): Entry(**entry) for name, entry in data["entries"].items()}
        race = Race(float(data["dense_us"]), entries)
        numbers = [race.dense_us, *(v for e in entries.values() for v in (e.us, e.ratio, e.low, e.high))]
        return race if all(isinstance(v, float) and v > 0 for v in numbers) else None
    except (TypeError, KeyError, AttributeError, ValueError):
        return None

"""One linear layer, every kernel that takes it, and what others offer, timed in turn on cold weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.ceilings import bound_us, ceilings
from sparseworks.exec.format import FORMATS
from sparseworks.exec.kernel import KERNELS, Call
from sparseworks.exec.ladder import DENSE
from sparseworks.exec.layers import layer_of, pack_for
from sparseworks.exec.race import candidates, copies_of, turns
from sparseworks.exec.rivals import RIVALS, Rival, error

PEER = "torch dense fp32"
OUR_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.int16: 1e-3}

_MOST_RIVALS = (
    16  # building a session of another runtime takes a tenth of a second; small weights may then stay in the last cache
)


@dataclass(frozen=True)
class Contender:
    """One line of a bench.

    Attributes:
        name, ours: who.
        us: median microseconds.
        ratio, low, high: dense torch over it, median and quartiles over rounds.
        nbytes: of its stored weight.
        bound_us: what bandwidth and arithmetic allow it at best.
        error: relative error against the float64 product of the masked weight.
    """

    name: str
    ours: bool
    us: float
    ratio: float
    low: float
    high: float
    nbytes: int
    bound_us: float
    error: float


@dataclass
class _Entry:
    turn: Callable[[], Any]
    nbytes: int
    work: int
    rate: float
    error: float


def bench(
    layer: nn.Linear,
    support: Support,
    rows: int,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    rivals: bool = True,
    rounds: int = 15,
) -> tuple[list[Contender], dict[str, str]]:
    """(contenders, fastest first; name -> sentence for those that refuse). Each is checked numerically before it is timed.

    With up to 64 rows everyone walks through copies of its weights, more than caches hold, as in a model; see `race`.

    Args:
        dtypes: types in which our kernels may store the kept values.
        rivals: time other libraries too; dense torch in float32 always runs.

    Raises:
        KernelError: the product of one of our kernels is wrong by more than its rounding explains.
    """
    call = Call(rows, tuple(support.shape), support.density, threads=torch.get_num_threads())  # type: ignore[arg-type]
    weight, x = layer.weight.detach() * support.mask(), torch.randn(rows, layer.in_features)
    taken, refused = candidates(support, call, dtypes)
    entries: dict[str, _Entry] = {}
    with torch.inference_mode():
        for name, rival in RIVALS.items() if rivals else [(PEER, RIVALS.get(PEER))]:
            if (why := rival.refuses(call)) is not None:
                refused[name] = why
                continue
            try:
                entries[name] = _rival(rival, weight, support, x)
            except (KernelError, RuntimeError, ImportError) as wrong:  # another library's limits are no error of ours
                refused[name] = str(wrong).splitlines()[0]
        bare = nn.Linear(layer.in_features, layer.out_features, bias=False)
        bare.weight = nn.Parameter(weight, requires_grad=False)
        for name in taken:
            entries[name] = _own(name, bare, support, weight, x)
        timings = measure.compare({name: e.turn for name, e in entries.items()}, rounds=rounds)
    limits = ceilings()
    listed = []
    for name, e in entries.items():
        ratio, bound = timings.ratio(PEER, name), bound_us(call, e.nbytes, e.work, limits, rate=e.rate)
        figures = (timings[name].us, ratio.median, ratio.low, ratio.high, e.nbytes, bound, e.error)
        listed.append(Contender(name, name in taken, *figures))
    return sorted(listed, key=lambda c: c.us), refused


def _rival(rival: Rival, weight: torch.Tensor, support: Support, x: torch.Tensor) -> _Entry:
    run = rival.build(weight, support)
    off = _checked(rival.name, error(run, weight, x), rival.tolerance)
    copies = min(_MOST_RIVALS, copies_of(rival.nbytes(support), x.shape[0]))
    runs = [run, *(rival.build(weight, support) for _ in range(copies - 1))]
    work = support.count if rival.sparse else support.size
    return _Entry(turns(runs, x), rival.nbytes(support), work, 32 / rival.bits, off)


def _own(name: str, layer: nn.Linear, support: Support, weight: torch.Tensor, x: torch.Tensor) -> _Entry:
    kernel = KERNELS.get(name)
    sparse = pack_for(layer_of(layer), support, [(0, name)])
    off = _checked(name, error(sparse, weight, x), OUR_TOLERANCE.get(kernel.value_dtype, 0.1))
    copies = copies_of(sparse.nbytes, x.shape[0])
    runs = [sparse, *(copy.deepcopy(sparse) for _ in range(copies - 1))]
    nbytes = FORMATS.get(kernel.format).nbytes(support, kernel.value_dtype)
    work = support.size if kernel.format == DENSE else support.count
    return _Entry(turns(runs, x), nbytes, work, kernel.rate, off)


def _checked(name: str, off: float, tolerance: float) -> float:
    if not off <= tolerance:
        raise KernelError(
            f"{name} is off by {off:.2g} of the product, more than {tolerance:g}: it is not timed, since a wrong product has no speed."
        )
    return off

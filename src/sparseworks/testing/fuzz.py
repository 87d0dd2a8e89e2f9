"""Damaged packed forms: every kernel refuses them or computes something, and never reads beyond a buffer.

`python -m sparseworks.testing.fuzz --seconds 60` runs cases until the time is over; with a build of the extension that has
AddressSanitizer (`make sanitize`) a read out of bounds ends the process. A case is given by its seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparseworks.core.errors import KernelError, SparseworksError
from sparseworks.core.patterns import parse
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS
from sparseworks.exec.format import Packed
from sparseworks.testing.examples import random_weight, require
from sparseworks.testing.kernel import call_of, input_of

_SHAPES = ((1, 2), (5, 8), (16, 32), (24, 96), (32, 64), (37, 300), (70, 64))
_ROWS = (1, 2, 3, 5, 9, 17, 33, 65)
_SMALL = (0, -1, 1, 2, 3, 7, 8, 15, 16, 64, 255, 256)
_HUGE = (32767, 32768, 65535, 65536, 2**24, 2**31 - 1, -(2**31), 2**31 - 8, -16, 2**40, -(2**63), 2**63 - 1)
_WRONG = (None, "8", 2.5, True, [], 10**30)


def fuzz_format(name: str, seed: int) -> str:
    """Pack a random matrix in format `name`, damage it, and give it to its kernels and to `unpack`; returns what was done.

    Raises:
        AssertionError: something other than an error of this library came out.
    """
    chance = random.Random(f"{name} {seed}")
    dtype = chance.choice(FORMATS.get(name).dtypes)
    whole = chance.choice(_forms(name, dtype))
    packed, story = whole, []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        packed, what = damage(packed, chance)
        story.append(what)
    said = f"{name} in {dtype}, {whole.shape}, seed {seed}: {', then '.join(story)}"
    _only_refuses(packed.unpack, f"{said}: unpack")
    rows = chance.choice(_ROWS)
    for kernel in KERNELS:
        if kernel.format != name or kernel.value_dtype != dtype or kernel.refuses(call_of(kernel, rows, whole.shape)):
            continue
        if chance.random() < 0.5:  # the check of the whole form must not speak for the damaged one
            kernel(input_of(kernel, rows, whole.shape[1]), whole, None)
        for width in {whole.shape[1], packed.shape[1] if 0 <= packed.shape[1] < 4096 else 0}:
            x = input_of(kernel, rows, width, seed=seed)
            _only_refuses(lambda k=kernel, x=x: k(x, packed, None), f"{said}: {kernel.name} with {rows} rows")
    return said


def damage(packed: Packed, chance: random.Random) -> tuple[Packed, str]:
    """One part, the meta data or the shape changed; the form itself stays as it is."""
    act = chance.choice(_DAMAGES)
    parts, meta = {k: t.clone() for k, t in packed.parts.items()}, dict(packed.meta)
    shape, what = act(parts, meta, packed.shape, chance)
    return Packed(packed.format, shape, packed.dtype, parts, meta), what


@cache
def _forms(name: str, dtype: torch.dtype) -> list[Packed]:
    """Whole forms of supports of many kinds that the format takes."""
    made, format = [], FORMATS.get(name)
    for out, width in _SHAPES:
        for support in _supports(out, width):
            if format.refuses(support, dtype) is None:
                made.append(format.pack(random_weight(out, width), support, dtype=dtype))
    require(bool(made), f"{name} takes none of the supports; give `fuzz` one that it takes.")
    return made


def _supports(out: int, width: int) -> list[Support]:
    g = torch.Generator().manual_seed(out * width)
    tiles = torch.rand(-(-out // 16), -(-width // 2), generator=g) < 0.4
    masks = [
        torch.rand(out, width, generator=g) < 0.3,
        torch.rand(out, width, generator=g).argsort(dim=1) < max(1, width // 3),
        torch.rand(out, -(-width // 4), 4, generator=g).argsort(dim=2).reshape(out, -1)[:, :width] < 2,
        tiles.repeat_interleave(16, dim=0).repeat_interleave(2, dim=1)[:out, :width],
        torch.ones(out, width, dtype=torch.bool),
    ]
    if out % 8 == 0 and width % 4 == 0:
        masks.append(parse("1:4:2").select(torch.rand(out, width, generator=g)).mask())
    return [Support.from_mask(m) for m in masks]


def _only_refuses(act: Callable[[], Any], said: str) -> None:
    try:
        act()
    except SparseworksError as error:
        require(isinstance(error, KernelError) and len(str(error)) > 20, f"{said}: refused by {error!r}.")
    except Exception as error:
        raise AssertionError(f"{said}: {type(error).__name__} ({error}) instead of a KernelError.") from error


# -- damages: they change `parts` and `meta` in place and return the shape and a description --------------------------

_Damage = Callable[[dict[str, Tensor], dict[str, Any], tuple[int, int], random.Random], tuple[tuple[int, int], str]]
_DAMAGES: list[_Damage] = []


def _on_a_part(change: Callable[[Tensor, random.Random], tuple[Tensor, str]]) -> None:
    def act(parts: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], chance: random.Random):
        if not parts:
            return shape, "no part is left"
        name = chance.choice(sorted(parts))
        parts[name], what = change(parts[name], chance)
        return shape, f"{name} {what}"

    _DAMAGES.append(act)


@_on_a_part
def _bits(t: Tensor, chance: random.Random) -> tuple[Tensor, str]:
    raw = t.new_empty(t.numel()).copy_(t.reshape(-1)).view(torch.uint8)  # one number may lie at any stride
    for _ in range(chance.choice((1, 2, 8)) if raw.numel() else 0):
        raw[chance.randrange(raw.numel())] ^= 1 << chance.randrange(8)
    return raw.view(t.dtype).reshape(t.shape), "with bits flipped"


@_on_a_part
def _size(t: Tensor, chance: random.Random) -> tuple[Tensor, str]:
    flat, n = t.reshape(-1), chance.choice((1, 2, 8, 16, 1000))
    if chance.random() < 0.5:
        return (flat[:-n].clone() if t.dim() < 2 else t[: max(0, t.shape[0] - n)].clone()), f"without its last {n}"
    return torch.cat([flat, flat.new_zeros(n)]), f"with {n} zeros more"


@_on_a_part
def _type(t: Tensor, chance: random.Random) -> tuple[Tensor, str]:
    dtype = chance.choice((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.bool))
    return t.to(dtype), f"as {dtype}"


@_on_a_part
def _layout(t: Tensor, chance: random.Random) -> tuple[Tensor, str]:
    kind = chance.choice(("turned", "strided", "flat", "empty", "scalar"))
    made = {
        "turned": lambda: t.t() if t.dim() == 2 else t[None],
        "strided": lambda: torch.stack([t, t], dim=-1)[..., 0],
        "flat": lambda: t.reshape(-1),
        "empty": lambda: t.new_empty(0),
        "scalar": lambda: t.new_ones(()),
    }[kind]()
    return made, kind


@_on_a_part
def _order(t: Tensor, chance: random.Random) -> tuple[Tensor, str]:
    flat = t.reshape(-1)
    order = torch.tensor(chance.sample(range(flat.numel()), flat.numel()), dtype=torch.long)
    return flat[order].reshape(t.shape), "in another order"


@_on_a_part
def _numbers(t: Tensor, chance: random.Random) -> tuple[Tensor, str]:
    flat = t.reshape(-1).clone()
    if t.dtype.is_floating_point or t.dtype is torch.bool or not flat.numel():
        return t, "as it was"
    facts = torch.iinfo(t.dtype)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, number = chance.randrange(flat.numel()), chance.choice((*_SMALL, *_HUGE, facts.max, facts.min))
        flat[at] = min(max(number, facts.min), facts.max)
    return flat.reshape(t.shape), "with other numbers"


@_DAMAGES.append
def _missing(parts: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], chance: random.Random):
    names = sorted(parts)
    if len(names) > 1 and chance.random() < 0.5:
        a, b = chance.sample(names, 2)
        parts[a], parts[b] = parts[b], parts[a]
        return shape, f"{a} and {b} exchanged"
    for name in names if chance.random() < 0.1 else chance.sample(names, min(1, len(names))):
        del parts[name]
    return shape, f"with {sorted(parts)} only"


@_DAMAGES.append
def _meta(parts: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], chance: random.Random):
    if not meta:
        return shape, "no meta data to change"
    name = chance.choice(sorted(meta))
    if chance.random() < 0.1:
        del meta[name]
        return shape, f"without {name}"
    near = [meta[name] + d for d in (-1, 1, 16)] if isinstance(meta[name], int) else []
    meta[name] = chance.choice((*near, *_SMALL, *_HUGE, *_WRONG))
    return shape, f"{name} = {meta[name]!r}"


@_DAMAGES.append
def _shape(parts: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], chance: random.Random):
    out, width = shape
    others = [(width, out), (out + 1, width), (out - 1, width), (out, width + 1), (out, width - 1), (out, 2 * width)]
    others += [(0, width), (out, 0), (-out, width), (out, -1), (10**15, width), (out, 10**15), (2**62, 2**62)]
    made = chance.choice(others)
    return made, f"called {made[0]}x{made[1]}"


def main() -> None:
    """The command line: `--seconds`, `--seed`, `--format`."""
    from argparse import ArgumentParser
    from time import monotonic

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--format", choices=FORMATS.names(), action="append", help="default: all formats")
    asked = parser.parse_args()
    names, seed, end = asked.format or FORMATS.names(), asked.seed, monotonic() + asked.seconds
    torch.set_num_threads(min(3, torch.get_num_threads()))
    while monotonic() < end:
        for name in names:
            fuzz_format(name, seed)
        seed += 1
    print(
        f"{(seed - asked.seed) * len(names)} damaged forms of {len(names)} formats: none got through; next seed {seed}"
    )


if __name__ == "__main__":
    main()

"""What travels between a server and its clients: kept values, supports, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.io.bitmask import decode, encode, stored_mask

Values = Mapping[str, Shaped[Tensor, " kept"]]
"""Name of a parameter or buffer -> its entries that are sent, in order."""


@dataclass(frozen=True)
class Message:
    """What the server sends to a client at the start of a round.

    Attributes:
        round: its number, from 0.
        values: kept entries of every parameter, and all of every floating-point buffer.
        supports: site name -> what is kept.
        whole: the client answers with all entries, not with the kept ones only: the server is about to choose again.
        kept_only: the client moves kept entries only.
        penalty: rate of the client's penalty, see `Feedback`.
        exchange: share of every site's kept entries that the client drops and grows anew, see `Readjust`; it replies with its own supports.
        at: share of its steps after which it does so.
    """

    round: int
    values: Values
    supports: Mapping[str, Support]
    whole: bool = False
    kept_only: bool = False
    penalty: float = 0.0
    exchange: float = 0.0
    at: float = 0.5

    @property
    def nbytes(self) -> int:
        """Bytes of values and supports; a support takes one bit an entry."""
        return _bytes(self.values) + _bits(self.supports)


@dataclass(frozen=True)
class Reply:
    """What a client sends back: its values, and on how many examples they were trained.

    Attributes:
        supports: its own ones, where the message has it exchange entries; None = the server's, which do not travel again.
    """

    round: int
    values: Values
    samples: int
    whole: bool = False
    supports: Mapping[str, Support] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values, and of the client's own supports, one bit an entry."""
        return _bytes(self.values) + _bits(self.supports or {})


def sent_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What is sent: parameters, and buffers that can be averaged."""
    return {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if b.is_floating_point()}}


def by_parameter(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Parameter name -> its sites."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(site.parameter, []).append(site)
    return found


def packed(
    model: nn.Module,
    members: Mapping[str, Sequence[Site]],
    supports: Mapping[str, Support],
    other: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Kept entries of every tensor of the model, or of the `other` one of that name; on the CPU."""
    return {
        name: encode((other or {}).get(name, t), stored_mask(t.shape, members.get(name, ()), supports)).cpu()
        for name, t in sent_tensors(model).items()
    }


def unpacked(
    model: nn.Module, values: Values, members: Mapping[str, Sequence[Site]], supports: Mapping[str, Support]
) -> dict[str, Tensor]:
    """Inverse of `packed`, laid out like the model's tensors, zero where nothing was sent.

    Raises:
        ModelError: the values are of another model or of other supports.
    """
    tensors = sent_tensors(model)
    if set(values) != set(tensors):
        raise ModelError(
            f"Values of another model: {sorted(set(values) ^ set(tensors))[:3]} are in one of the two only."
        )
    masks = {name: stored_mask(t.shape, members.get(name, ()), supports) for name, t in tensors.items()}
    wrong = [name for name, mask in masks.items() if values[name].numel() != int(mask.sum())]
    if wrong:
        raise ModelError(
            f"Values of another model: {wrong[0]!r} has {values[wrong[0]].numel()} of {int(masks[wrong[0]].sum())}."
        )
    return {name: decode(values[name], masks[name], name).to(t.device) for name, t in tensors.items()}


def _bits(supports: Mapping[str, Support]) -> int:
    return sum(s.bits().numel() for s in supports.values())


def _bytes(values: Values) -> int:
    return sum(t.numel() * t.element_size() for t in values.values())

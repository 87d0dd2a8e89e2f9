"""A client of federated training: it trains what a message brings, and replies with what it holds then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.patterns import parse
from sparseworks.core.regime import Regime
from sparseworks.core.schedule import Constant
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.io.bitmask import stored_mask
from sparseworks.io.folder import write_file
from sparseworks.io.tensors import Entry, read_tensors, safetensors_chunks
from sparseworks.scores import Magnitude
from sparseworks.weights.settings.messages import Message, Reply, by_parameter, packed, sent_tensors, unpacked
from sparseworks.weights.train.checks import chosen
from sparseworks.weights.train.feedback import Feedback
from sparseworks.weights.train.readjust import Readjust
from sparseworks.weights.train.sparsifier import Sparsifier


class Client:
    """One client: its own copy of the model, and what it has not sent yet.

    optimizer = torch.optim.SGD(client.model.parameters(), lr=0.1)
    client.receive(message, optimizer)
    for x, y in batches: ...                        # any training, with this optimiser
    reply = client.reply(samples=len(data))

    Entries outside the support are trained by the gradients of the sparse model (see `Feedback`) and stay here until the server
    asks for all; then they are sent once. The authors' code sends them in every round, and its server drops them after the first.

    A message that has the client exchange entries ("feddst") needs `receive(message, optimizer, steps=...)`, the optimiser steps to
    come: after a share of them the client drops and grows, and it replies with its own supports.
    """

    def __init__(self, model: nn.Module, *, sites: Sequence[Site] | None = None, skip: Sequence[str] = ()):
        """A model of the same architecture as the server's; the same `sites` and `skip`."""
        self.model = model
        self.sites = chosen(model, sites, skip)
        self._kept_back: dict[str, Tensor] = {}
        self._message: Message | None = None

    def receive(self, message: Message, optimizer: Optimizer, steps: int | None = None) -> None:
        """Load what the server sent and take hold of the optimiser until `reply`.

        Args:
            message: of the round.
            optimizer: of the client, made anew or kept.
            steps: optimiser steps until `reply`; needed where the client changes its own supports.

        Raises:
            ModelError: the message is of another model, the one before has no reply yet, or `steps` are needed.
        """
        if message.exchange and (steps is None or steps < 1):
            raise ModelError(
                f"Round {message.round} has clients change their supports after {message.at:.0%} of their steps: give `steps`, "
                f"the number of optimiser steps until `reply`."
            )
        if self._message is not None:
            raise ModelError(f"The message of round {self._message.round} has no reply yet: call `reply` first.")
        members = by_parameter(self.sites)
        tensors = sent_tensors(self.model)
        with torch.no_grad():
            for name, kept in unpacked(self.model, message.values, members, message.supports).items():
                tensors[name].copy_(kept)
                if name in self._kept_back:
                    mask = stored_mask(kept.shape, members[name], message.supports).to(kept.device)
                    tensors[name].copy_(torch.where(mask, kept, self._kept_back[name]))
        method = Method("local", Magnitude(), parse("tensor"), train=_local(message, steps or 0))
        trained = {site.parameter: site.tensor(self.model).detach() for site in self.sites}
        held = {} if message.exchange else trained
        self._run = Sparsifier(
            self.model, method, optimizer, sites=self.sites, state=_held(method, message.supports, held)
        )
        self._count: RemovableHandle = optimizer.register_step_post_hook(self._counted)
        self._message = message

    def reply(self, samples: int) -> Reply:
        """Let go of the optimiser; the weights as they are now, `samples` examples worth.

        Raises:
            ModelError: there is no message to reply to.
        """
        if self._message is None:
            raise ModelError("There is no message to reply to: call `receive` first.")
        message, self._message = self._message, None
        trained, whole = self._run.state_dict()["masters"], message.whole
        self._count.remove()
        kept = self._run.finish()
        members, own = by_parameter(self.sites), kept if message.exchange else None
        values = packed(self.model, members, {} if whole else own or message.supports, trained)
        shown = sent_tensors(self.model)
        self._kept_back = {} if whole else {name: tensor - shown[name].detach() for name, tensor in trained.items()}
        return Reply(message.round, values, samples, whole, own)

    def save(self, path: Path | str) -> None:
        """Write what has not been sent yet; everything else comes with the next message.

        Raises:
            ModelError: a message has no reply yet.
            CheckpointError: the disk is full or not writable.
        """
        if self._message is not None:
            raise ModelError(f"The message of round {self._message.round} has no reply yet: call `reply` first.")
        try:
            write_file(Path(path), safetensors_chunks([Entry.of(n, t) for n, t in self._kept_back.items()]))
        except OSError as error:
            raise CheckpointError(f"Cannot write the state of a client {path}: {error}.") from error

    def load(self, path: Path | str) -> None:
        """What `save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged, or of another model.
        """
        found, shapes = read_tensors(Path(path)), {n: t.shape for n, t in self.model.named_parameters()}
        wrong = [name for name, tensor in found.items() if tensor.shape != shapes.get(name)]
        if wrong:
            raise CheckpointError(f"{path} is of another model: {wrong[0]!r} is not in this one.")
        self._kept_back = {name: tensor.clone() for name, tensor in found.items()}

    def _counted(self, *_: Any) -> None:
        self._run.step()


def _local(message: Message, steps: int) -> Regime:
    """What a client of the round does at every step."""
    if message.exchange:
        return Readjust(share=message.exchange, step=max(1, round(message.at * steps)))
    return Feedback(message.kept_only, Constant(message.penalty) if message.penalty else None)


def _held(method: Method, supports: Mapping[str, Support], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of a sparsifier at its start that holds `supports`, and trains `weights` behind them."""
    empty: dict[str, dict[str, Tensor]] = {name: {} for name in supports}
    return {
        "method": method.to_config(), "done": 0, "history": [], "supports": {n: s.bits() for n, s in supports.items()},
        "states": empty, "learned": empty, "masters": weights,
    }  # fmt: skip

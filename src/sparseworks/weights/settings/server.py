"""The server of federated training: a round is one step of a sparsifier, whose gradient is what the clients' weights moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.errors import CheckpointError, ModelError, NonFiniteError
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.stats import WeightGradient
from sparseworks.core.support import Support
from sparseworks.io.bitmask import stored_mask
from sparseworks.io.training import load_training, save_training
from sparseworks.stream.gradients import Loss
from sparseworks.weights.settings.messages import Message, Reply, by_parameter, packed, sent_tensors, unpacked
from sparseworks.weights.train.feedback import Feedback, Reconfigure
from sparseworks.weights.train.readjust import ClientDropGrow
from sparseworks.weights.train.run import Event
from sparseworks.weights.train.sparsifier import Sparsifier
from sparseworks.weights.train.state import flat, nested


class Server:
    """The global model and its supports.

    server = Server(model, sw.method("feddip", density=0.05), rounds=100)
    for _ in range(100):
        message = server.message()
        server.receive([train(client, message) for client in some_clients])
    supports = server.finish()

    W <- optimiser(W, W - sum over clients of n_k W_k / sum n_k): with SGD at rate 1 the mean of the clients' weights
    (federated averaging). Every method that trains works, its steps being rounds: "feddip"; "rigl", which grows where the
    clients' summed gradients are largest; "feddst", whose clients change their own supports, so that each entry is averaged over
    those that hold it; "snip" on `data` of the server, held. Buffers are averaged.

    Source: McMahan et al., 2017, arXiv 1602.05629; Reddi et al., 2021, arXiv 2003.00295 (the server as an optimiser).

    Attributes:
        round: rounds finished.
        sent, received: bytes of all messages to clients, as `receive` counts them, and of all replies.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | str,
        *,
        rounds: int,
        optimizer: Optimizer | None = None,
        sites: Sequence[Site] | None = None,
        skip: Sequence[str] = (),
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ):
        """Choose the first supports.

        Args:
            model: the global model, changed in place.
            rounds: how many there will be.
            optimizer: of the server; default: SGD at rate 1.
            sites, skip, data, loss, seed: as for `Sparsifier`.

        Raises:
            ModelError, BudgetError, MissingStatError: as `Sparsifier`.
        """
        method = Method.of(method)
        self.model = model
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
        self.run = Sparsifier(
            model, method, self.optimizer, steps=rounds, sites=sites, skip=skip, data=data, loss=loss, seed=seed
        )
        regime = self.run.regime
        self._moving = regime if isinstance(regime, ClientDropGrow) else None
        local = regime.local if isinstance(regime, Reconfigure) else Feedback(kept_only=self._moving is not None)
        if not isinstance(local, Feedback):
            raise ModelError(f"Clients train by `Feedback`, method {method.name!r} names {local!r}.")
        self._local: Feedback = local
        self._curious = regime.dense or WeightGradient in method.score.needs | regime.needs
        self.sent = self.received = 0
        self._message: Message | None = None

    @property
    def round(self) -> int:
        """Rounds finished."""
        return self.run.done

    def message(self) -> Message:
        """What every client of this round is sent."""
        if self._message is None:
            supports, local, moving = self.run.supports, self._local, self._moving
            self._message = Message(
                round=self.round,
                values=packed(self.model, by_parameter(p.site for p in self.run.sites), supports),
                supports=supports,
                whole=self._curious and not local.kept_only and self.run.regime.due(self.run),
                kept_only=local.kept_only,
                penalty=local.penalty(self.run.progress) if local.penalty else 0.0,
                exchange=moving.share(self.run) if moving else 0.0,
                at=moving.at if moving else 0.5,
            )
        return self._message

    def receive(self, replies: Sequence[Reply]) -> Event | None:
        """End the round: one step of the optimiser, one of the sparsifier.

        Returns:
            What changed in the supports, or None.

        Raises:
            ModelError: no replies, one of another round or model, one that trained on nothing, or one without supports of its own
                where the message has clients exchange entries.
            NonFiniteError: a reply holds NaN or infinity; nothing was changed.
        """
        message, before, since = self.message(), self.run.supports, len(self.run.history)
        if not replies or any(r.round != self.round or r.whole != message.whole or r.samples < 1 for r in replies):
            raise ModelError(
                f"Round {self.round} ends with at least one reply to its own message, trained on at least one example; got "
                f"{[(r.round, r.samples) for r in replies]} as (round, samples)."
            )
        if any(_shapes(r.supports) != (_shapes(before) if message.exchange else None) for r in replies):
            raise ModelError(
                f"Clients reply to round {self.round} with {'their own supports, one a site' if message.exchange else 'no supports'}; "
                f"one does not."
            )
        tensors, mean = sent_tensors(self.model), self._mean(replies, message)
        wrong = [name for name, tensor in mean.items() if not bool(torch.isfinite(tensor).all())]
        if wrong:
            raise NonFiniteError(
                f"A reply to round {self.round} holds NaN or infinity in {wrong[0]!r}: leave that client out."
            )
        if message.exchange:
            self.run.adopt({n: reduce(or_, ((r.supports or {})[n] for r in replies)) for n in before})
        with torch.no_grad():
            for name, tensor in tensors.items():
                if isinstance(tensor, nn.Parameter):
                    tensor.grad = tensor - mean[name]
                else:
                    tensor.copy_(mean[name])
        self.sent += message.nbytes * len(replies)
        self.received += sum(r.nbytes for r in replies)
        self._message = None
        self.optimizer.step()
        event = self.run.step()
        self.optimizer.zero_grad()
        return self._one_event(before, since) if message.exchange else event

    def _mean(self, replies: Sequence[Reply], message: Message) -> dict[str, Tensor]:
        """sum_k n_k m_k W_k / sum_k n_k m_k: with supports that all share the mean of what was sent, zero elsewhere."""
        total, shared = sum(r.samples for r in replies), {} if message.whole else message.supports
        members = by_parameter(p.site for p in self.run.sites)
        sent = [
            (unpacked(self.model, r.values, members, shared if r.supports is None else r.supports), r.samples / total)
            for r in replies
        ]
        mean = {n: torch.stack([share * w[n] for w, share in sent]).sum(dim=0) for n in sent_tensors(self.model)}
        if message.exchange:
            for name, sites in members.items():
                held = [stored_mask(mean[name].shape, sites, r.supports or {}) for r in replies]
                voters = (
                    torch.stack([share * m for m, (_, share) in zip(held, sent, strict=True)]).sum(dim=0).to(mean[name])
                )
                mean[name] = torch.where(voters > 0, mean[name] / voters, 0.0)
        return mean

    def _one_event(self, before: Mapping[str, Support], since: int) -> Event | None:
        """All that changed since `before`: taking up the clients' supports and going back to the budget are one change."""
        now, history = self.run.supports, self.run.history
        dropped, grown = (sum((a[n] - b[n]).count for n in now) for a, b in ((before, now), (now, before)))
        kept = sum(s.count for s in now.values())
        history[since:] = [Event(self.round, kept, dropped, grown)] if dropped or grown else []
        return history[-1] if len(history) > since else None

    def finish(self) -> dict[str, Support]:
        """The method's final sparsity; returns the supports."""
        return self.run.finish()

    def save(self, path: Path | str) -> None:
        """Write everything needed to go on after the last finished round, in one file, whole or not at all.

        Raises:
            CheckpointError: the disk is full or not writable; the previous file is untouched.
        """
        tensors, run = flat(self.run.state_dict())
        facts = {"run": run, "sent": self.sent, "received": self.received}
        save_training(Path(path), self.model, self.optimizer, facts, extra=tensors)

    def load(self, path: Path | str) -> None:
        """Go on where `save` was called, bit for bit; the server is built with the same arguments. torch's generator goes back too.

        Raises:
            CheckpointError: the file is missing or damaged, or of another model or method.
        """
        facts, tensors = load_training(Path(path), self.model, self.optimizer)
        if "run" not in facts:
            raise CheckpointError(f"{path} holds a training, but not that of a server.")
        self.run.load_state_dict(nested(tensors, facts["run"]))
        self.sent, self.received, self._message = facts["sent"], facts["received"], None


def _shapes(supports: Mapping[str, Support] | None) -> dict[str, tuple[int, ...]] | None:
    return None if supports is None else {name: support.shape for name, support in supports.items()}

"""Several online Q-networks of rising sparsity that share one target: the agent prunes at the pace at which it learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseworks.core.budget import Density
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.weights.enforce import dropped_masks, hold
from sparseworks.weights.prune import prune
from sparseworks.weights.train.checks import chosen

Loss = Callable[[nn.Module, nn.Module], Tensor]
"""`loss(online, target) -> scalar`: of one batch, the temporal-difference error against the target network."""


@dataclass
class Rival:
    """One online network.

    Attributes:
        sparsity: share of the entries of its sites that it dropped.
        loss: sum of its losses since the last target update.
    """

    network: nn.Module
    optimizer: Optimizer
    supports: dict[str, Support]
    handle: RemovableHandle
    sparsity: float = 0.0
    loss: float = 0.0


class PacedQNetworks:
    """K online networks; at a target update the one of smallest loss becomes the target, and the others pruned copies of it.

    agent = PacedQNetworks(network, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    ...  agent.learn(lambda online, target: td_error(online, target, batch))        # one step of every network
    ...  agent.renew()                                                              # every so many steps

    One copy keeps the sparsity s of the chosen network, so that pruning can wait; the others get s + (1 - s) reach u with
    u ~ U[0, 1], no further than `most`. The temporal-difference loss distils the target into them. No final sparsity is set.
    Copies go on with the optimiser's state of the chosen network at the entries they keep.

    Source: Vincent, Faust, Tripathi, Peters and D'Eramo, 2025, arXiv 2503.01437 (EauDeQN). The distribution of the sparsities is a
    reading of the text: there the range grows with training; here it is a share of what is left.

    Attributes:
        target: the network whose values the others learn, and the one to keep in the end.
        supports: of the target.
        rivals: the online networks, in order of rising sparsity.
        history: sparsity and mean loss of the network chosen at every update.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        method: Method | str = "eau_de_qn",
        *,
        count: int = 5,
        reach: float = 0.1,
        most: float = 0.99,
        sites: Sequence[Site] | None = None,
        skip: Sequence[str] = (),
        seed: int = 0,
    ):
        """The first networks: `network` itself and copies, all but one of them pruned.

        Args:
            optimizer: makes an optimiser for the parameters of one network.
            method: how copies are pruned; its budget is not used.
            count: networks, at least two.
            reach: largest share of what is left that one update can drop.
            most: largest sparsity of any network.
            sites, skip: as for `sparseworks.prune`.

        Raises:
            BudgetError: a number is out of range.
            ModelError: there is nothing to prune.
        """
        if count < 2 or not 0.0 < reach <= 1.0 or not 0.0 <= most < 1.0:
            raise BudgetError(f"At least two networks, reach in (0, 1], most in [0, 1); got {count}, {reach}, {most}.")
        self.method = Method.of(method)
        self.count, self.reach, self.most = count, reach, most
        self.sites = chosen(network, sites, skip)
        if not self.sites:
            raise ModelError("Nothing to prune: the network has no sites, or `skip` leaves all of them dense.")
        self.target = copy.deepcopy(network)
        self.supports = {s.name: Support.full(s.shape) for s in self.sites}
        self.sparsity = 0.0
        self.steps = 0
        self.history: list[tuple[float, float]] = []
        self._make, self._draw = optimizer, torch.Generator().manual_seed(seed)
        self.rivals = self._spread(network, None)

    def learn(self, loss: Loss) -> list[float]:
        """One optimiser step of every network on its loss; the losses add up until the next update.

        Returns:
            The losses, in the order of `rivals`.
        """
        found = []
        for rival in self.rivals:
            rival.optimizer.zero_grad()
            error = loss(rival.network, self.target)
            error.backward()
            rival.optimizer.step()
            found.append(float(error.detach()))
            rival.loss += found[-1]
        self.steps += 1
        return found

    def renew(self) -> Rival:
        """The target update; returns the network that was chosen.

        Raises:
            ModelError: nothing was learned since the last one.
        """
        if not self.steps:
            raise ModelError("There are no losses to choose by: call `learn` before `renew`.")
        best = min(self.rivals, key=lambda r: r.loss)
        self.target.load_state_dict(best.network.state_dict())
        self.supports, self.sparsity = best.supports, best.sparsity
        self.history.append((best.sparsity, best.loss / self.steps))
        for rival in self.rivals:
            rival.handle.remove()
        self.steps = 0
        self.rivals = self._spread(best.network, best.optimizer)
        return best

    def acting(self) -> nn.Module:
        """One of the online networks, drawn anew at every call: who acts in the next step."""
        return self.rivals[int(torch.randint(self.count, (), generator=self._draw))].network

    def _spread(self, network: nn.Module, optimizer: Optimizer | None) -> list[Rival]:
        """Copies of `network`: one as sparse as the target, the others sparser."""
        draws = torch.rand(self.count - 1, generator=self._draw).sort().values.tolist()
        wished = [self.sparsity + (1.0 - self.sparsity) * self.reach * u for u in draws]
        levels = [self.sparsity, *(max(min(level, self.most), self.sparsity) for level in wished)]
        return [self._copy(network, optimizer, level) for level in levels]

    def _copy(self, network: nn.Module, optimizer: Optimizer | None, sparsity: float) -> Rival:
        made, supports = copy.deepcopy(network), self.supports
        if sparsity > self.sparsity:
            supports = dict(prune(made, self._at(sparsity), sites=self.sites, progress=False).supports)
        mine = self._make(made.parameters())
        dropped = dropped_masks(made, self.sites, supports)
        if optimizer is not None:
            mine.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            _clear(mine, made, dropped)
        kept = sum(s.count for s in supports.values()) / sum(s.size for s in self.sites)
        return Rival(made, mine, supports, hold(mine, made, dropped), 1.0 - kept)

    def _at(self, sparsity: float) -> Method:
        return self.method.with_(budget=Density(1.0 - sparsity))


@torch.no_grad()
def _clear(optimizer: Optimizer, network: nn.Module, dropped: Mapping[str, Tensor]) -> None:
    """No moments where there is no weight."""
    for name, mask in dropped.items():
        parameter = network.get_parameter(name)
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(mask, 0.0)

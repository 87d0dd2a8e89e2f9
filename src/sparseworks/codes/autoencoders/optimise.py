"""Adam with warm-up and decay for one autoencoder: 16-bit parameters have masters, gradients are those of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparseworks.core.ahead import is_ahead


class Optimiser:
    """Adam on float32 (or wider) masters of the parameters; a parameter of 16 bits gets what its master became.

    In 16 bits a step of 1e-3 of a weight is rounded away; thresholds would never move.

    Args:
        module: whose parameters.
        lr: the highest learning rate.
        steps: of the whole training.
        warmup, decay: shares of the steps in which the rate rises from 0 and falls to 0, in straight lines.
        clip: the gradient's largest norm; 0: not clipped.
        betas, eps: of Adam.
        recorded: steps will be recorded on a GPU and replayed, so that the rate is a tensor.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        steps: int,
        warmup: float,
        decay: float,
        clip: float,
        betas: tuple[float, float],
        eps: float,
        recorded: bool = False,
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.masters = [nn.Parameter(p.detach().float()) if _short(p) else p for p in self.parameters]
        self.lr, self.steps, self.warmup, self.decay, self.clip = lr, steps, warmup, decay, clip
        first: Any = torch.tensor(lr, device=self.masters[0].device) if recorded else lr
        self.adam = torch.optim.Adam(self.masters, lr=first, betas=betas, eps=eps, fused=True, capturable=recorded)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        rising = (step + 1) / max(self.warmup * self.steps, 1)
        falling = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.lr * min(1.0, rising, falling)

    def zero(self) -> None:
        """Forget gradients."""
        for p in self.parameters:
            p.grad = None

    def share(self) -> None:
        """Gradients become the mean over processes."""
        if ranks() == 1:
            return
        for p in self.parameters:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(grad)
            p.grad = grad / ranks()

    def at(self, step: int) -> None:
        """Set the learning rate of a step."""
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.rate(step))
            else:
                group["lr"] = self.rate(step)

    def step(self) -> None:
        """One step of Adam; parameters without a gradient stay."""
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
        if self.clip:
            _clip([m.grad for m in self.masters if m.grad is not None], self.clip)
        self.adam.step()

    @torch.no_grad()
    def publish(self) -> None:
        """Parameters of 16 bits become their masters."""
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is not p:
                p.copy_(master)

    @torch.no_grad()
    def gather(self) -> None:
        """Masters become what was done to the parameters, where that is more than rounding."""
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is not p:
                changed = p != master.to(p.dtype)
                master.copy_(torch.where(changed, p.float(), master))

    def forget(self, latents: Tensor, width: int) -> None:
        """Moments of some latents to 0: they were set anew."""
        for master in self.masters:
            for value in self.adam.state.get(master, {}).values():
                if isinstance(value, Tensor) and value.dim() and len(value) == width:
                    value[latents] = 0

    def extra(self) -> dict[str, Tensor]:
        """Masters that are not parameters, to be saved."""
        pairs = zip(self.names, self.masters, self.parameters, strict=True)
        return {name: master.detach() for name, master, p in pairs if master is not p}

    @torch.no_grad()
    def restore(self, extra: dict[str, Tensor]) -> None:
        """What `extra` gave."""
        for name, master, p in zip(self.names, self.masters, self.parameters, strict=True):
            if master is not p:
                master.copy_(extra[name])


def _clip(grads: list[Tensor], most: float) -> None:
    norm = nn.utils.get_total_norm(grads)
    if is_ahead():
        share = (most / norm.clamp(min=1e-30)).clamp(max=1)
        torch._foreach_mul_(grads, share)  # pyright: ignore[reportPrivateImportUsage]
    elif float(norm) > most:  # one pass less where nothing is to be clipped
        for grad in grads:
            grad.mul_(most / float(norm))


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if ranks() > 1 else 0


def _short(p: Tensor) -> bool:
    return p.element_size() < 4

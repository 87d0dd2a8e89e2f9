"""A diffusion transformer for small clips, and its sampler: flow matching on patches of all frames at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError
from sparseworks.models.blocks import Block, BlockConfig, BlockModel


class VideoDiffusionConfig(BlockConfig):
    """`frames` pictures of `size` x `size` pixels in patches of `patch` x `patch`: frames (size / patch)^2 tokens."""

    model_type = "sparseworks_video"

    def __init__(self, frames: int = 8, size: int = 16, patch: int = 2, **kwargs: Any):
        self.frames, self.size, self.patch = frames, size, patch
        super().__init__(**kwargs)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, rows and columns; token (t, y, x) has the place (t rows + y) columns + x."""
        side = self.size // self.patch
        return self.frames, side, side


class VideoDiffusion(BlockModel):
    """v(x_t, t) = E[clip - noise | x_t] for x_t = (1 - t) noise + t clip (rectified flow, Liu et al., 2022, arXiv 2209.03003).

    Places and the time are added to the tokens; blocks are not modulated. All tokens attend to all tokens.
    """

    config_class = VideoDiffusionConfig

    def __init__(self, config: VideoDiffusionConfig):
        super().__init__(config)
        width, pixels = config.hidden_size, config.patch**2
        self.patches = nn.Linear(pixels, width)
        self.places = nn.ModuleList(nn.Embedding(n, width) for n in config.grid)
        self.time_in, self.time_out = nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(width, 1e-6)
        self.head = nn.Linear(width, pixels)
        self.post_init()

    def forward(
        self, clips: Float[Tensor, "batch frames size size"], time: Float[Tensor, " batch"], **kwargs: Any
    ) -> Float[Tensor, "batch frames size size"]:
        """The velocity at `time`, 0 at the noise and 1 at the clip; `kwargs` reach the attention function."""
        frames, rows, cols = self.config.grid
        side = self.config.patch
        split = clips.view(-1, frames, rows, side, cols, side).transpose(3, 4)
        t, y, x = (torch.as_tensor(table.weight) for table in self.places)
        place = t[:, None, None] + y[:, None] + x
        hidden = self.patches(split.flatten(4)) + place
        hidden = hidden.flatten(1, 3) + self._time(time)[:, None]
        for layer in self.layers:
            hidden = layer(hidden, **kwargs)
        out = self.head(self.norm(hidden)).view(-1, frames, rows, cols, side, side)
        return out.transpose(3, 4).reshape(clips.shape)

    def _time(self, time: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        half = self.config.hidden_size // 2
        rates = torch.exp(-math.log(1000.0) * torch.arange(half, device=time.device) / half)
        waves = 1000.0 * time[:, None] * rates
        waves = torch.cat([waves.sin(), waves.cos()], dim=1).to(self.time_in.weight.dtype)
        return self.time_out(F.silu(self.time_in(waves)))


@torch.no_grad()
def sample(
    model: VideoDiffusion,
    clips: int = 1,
    *,
    steps: int = 50,
    seed: int = 0,
    before: Callable[[int], None] | None = None,
) -> Float[Tensor, "clips frames size size"]:
    """Euler steps x <- x + v(x, t) / steps from noise at t = 0 to t = 1.

    Args:
        model: in evaluation mode.
        clips: samples.
        steps: calls of the model.
        seed: of the noise.
        before: called with the number of the step before every call: masks that live over steps count by it.

    Raises:
        BudgetError: no steps.
    """
    if steps < 1:
        raise BudgetError(f"Sampling needs at least one step, got {steps}.")
    config, weight = model.config, model.head.weight
    shape = (clips, config.frames, config.size, config.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(weight)
    for step in range(steps):
        if before is not None:
            before(step)
        x = x + model(x, torch.full((clips,), step / steps, device=x.device)) / steps
    return x


def squares(
    count: int, *, frames: int = 8, size: int = 16, most: int = 2, seed: int = 0
) -> Float[Tensor, "count frames size size"]:
    """Clips of one to `most` bright squares of 4 to 6 pixels that move at up to 2 pixels a frame and leave at one side to come in at the other.

    Background -0.5, squares 1 to 2 brighter; a square keeps its size, speed and brightness.
    """
    g = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=g)

    side, start, speed = drawn(4, 6, count, most, 1), drawn(0, size - 1, count, most, 2), drawn(-2, 2, count, most, 2)
    bright = 1 + torch.rand(count, most, generator=g)
    bright = torch.where(torch.arange(most) < drawn(1, most, count, 1), bright, 0.0)
    corner = start[:, :, None] + speed[:, :, None] * torch.arange(frames)[:, None]  # clip, square, frame, axis
    inside = (torch.arange(size) - corner.unsqueeze(-1)) % size < side[..., None, None]  # ... axis, pixel
    squares = inside[:, :, :, 0, :, None] & inside[:, :, :, 1, None, :]
    return (squares * bright[..., None, None, None]).amax(dim=1) - 0.5


def flow_loss(model: VideoDiffusion, clips: Float[Tensor, "batch frames size size"], seed: int) -> Float[Tensor, ""]:
    """mean (v(x_t, t) - (clip - noise))^2 with one uniform time and one noise a clip."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(clips.shape, generator=g)
    time = torch.rand(len(clips), generator=g)
    mixed = noise + time[:, None, None, None] * (clips - noise)
    return (model(mixed, time) - (clips - noise)).square().mean()

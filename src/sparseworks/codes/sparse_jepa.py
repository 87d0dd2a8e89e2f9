"""A joint-embedding predictor whose output groups each read only some of its latents."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.core.finite import require_floating


class PatchEncoder(nn.Module):
    """Linear embedding, learnt places, and a small transformer: tokens -> tokens of `width` numbers."""

    def __init__(self, tokens: int, features: int, width: int, layers: int):
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.places = nn.Parameter(torch.randn(tokens, width) * 0.1)
        self.body = _transformer(width, layers)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, patches: Float[Tensor, "rows tokens features"], kept: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "rows kept width"]:
        """Embeddings of the kept tokens, which see each other only."""
        x = self.embed(patches) + self.places
        return self.norm(self.body(x if kept is None else x[:, kept]))


class GroupedMap(nn.Module):
    """z -> (W_1 z, ..., W_G z); `shrink` takes columns of each W_g to exactly 0.

    The penalty is sum_g sum_j ||W_g[:, j]||_2: latent j speaks to group g, or does not.
    """

    def __init__(self, latents: int, groups: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(groups, size, latents) / latents**0.5)

    def forward(self, z: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows width"]:
        """The groups side by side."""
        return z @ self.weight.flatten(0, 1).mT

    @torch.no_grad()
    def shrink(self, threshold: float) -> None:
        """W_g[:, j] (1 - threshold / ||W_g[:, j]||)_+, the proximal step of the penalty."""
        size = self.weight.norm(dim=1, keepdim=True)
        self.weight *= (1 - threshold / size.clamp(min=1e-12)).clamp(min=0)

    @property
    def zeros(self) -> float:
        """Share of (group, latent) pairs that are switched off."""
        return 1 - float((self.weight.norm(dim=1) > 0).double().mean())


@dataclass(frozen=True)
class JointEmbedding:
    """What was learnt.

    Attributes:
        encoder: the context encoder, in eval mode; the mean of its tokens serves as features.
        groups: the map from latents to groups.
        loss: mean squared error of the prediction, each step.
    """

    encoder: PatchEncoder
    groups: GroupedMap
    loss: tuple[float, ...]

    @torch.no_grad()
    def features(self, patches: Float[Tensor, "rows tokens features"]) -> Float[Tensor, "rows width"]:
        """Mean over the tokens of whole images."""
        return self.encoder(patches).mean(1)


def sparse_jepa(
    patches: Float[Tensor, "rows tokens features"],
    weight: float = 0.1,
    *,
    width: int = 32,
    groups: int = 8,
    latents: int = 32,
    layers: int = 1,
    hidden: float = 0.5,
    steps: int = 400,
    batch: int = 64,
    rate: float = 1e-3,
    momentum: float = 0.99,
    seed: int = 0,
) -> JointEmbedding:
    """min ||s' - s||^2 + weight sum_g sum_j ||W_g[:, j]||: hidden tokens' embeddings s, from an averaged encoder, are predicted from the others.

    A share `hidden` of the tokens, a contiguous run, is left out of the context. The predictor's latents reach the prediction through a
    `GroupedMap`, on which a proximal step of size rate follows each step of Adam. weight = 0 is plain JEPA. One summary of the paper also names a
    KL term, which is left out.

    Args:
        momentum: of the averaged encoder.

    Raises:
        ShapeError: patches are not (rows, tokens, features), or there is only one token.
        DtypeError: not float32 or float64.
        NonFiniteError: NaN or infinity.
        BudgetError: groups that do not divide the width, a weight below 0, or sizes below 1.

    Source: Hartman and Varshney, 2025 (arXiv 2504.16140).
    """
    if patches.dim() != 3 or patches.shape[1] < 2 or not patches.numel():
        raise ShapeError(f"Patches are (rows, tokens, features) with two tokens or more, got {tuple(patches.shape)}.")
    require_floating("Patches", patches)
    if not bool(torch.isfinite(patches).all()):
        raise NonFiniteError("Patches hold NaN or infinity.")
    if (
        min(width, groups, latents, layers, steps, batch) < 1
        or width % groups
        or width % 4
        or weight < 0
        or not 0 < hidden < 1
    ):
        raise BudgetError(
            f"Width ({width}) is a multiple of 4 and of the groups ({groups}), weights are not negative, sizes at least 1, a share hidden in (0, 1)."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(patches, weight, width, groups, latents, layers, hidden, steps, batch, rate, momentum)


def _train(
    patches: Tensor,
    weight: float,
    width: int,
    groups: int,
    latents: int,
    layers: int,
    hidden: float,
    steps: int,
    batch: int,
    rate: float,
    momentum: float,
) -> JointEmbedding:
    tokens = patches.shape[1]
    encoder = PatchEncoder(tokens, patches.shape[2], width, layers).to(patches)
    averaged = copy.deepcopy(encoder).requires_grad_(False)
    predictor = nn.Sequential(_transformer(width, layers), nn.Linear(width, latents), nn.GELU()).to(patches)
    mask_token = nn.Parameter(patches.new_zeros(width))
    out = GroupedMap(latents, groups, width // groups).to(patches)
    optimizer = torch.optim.AdamW(
        [
            {"params": [*encoder.parameters(), *predictor.parameters(), mask_token]},
            {"params": out.parameters(), "weight_decay": 0.0},
        ],
        lr=rate,
    )
    hide = min(tokens - 1, max(1, round(hidden * tokens)))
    history = []
    for _ in range(steps):
        order = (torch.arange(tokens) + int(torch.randint(tokens, ()))) % tokens
        aim, context = order[:hide], order[hide:]
        rows = patches[torch.randint(len(patches), (batch,))]
        with torch.no_grad():
            goal = averaged(rows)[:, aim]
        asked = (mask_token + encoder.places[aim]).expand(len(rows), -1, -1)
        latent = predictor(torch.cat([encoder(rows, context), asked], 1))[:, -hide:]
        loss = (out(latent) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.shrink(rate * weight)
        with torch.no_grad():
            for slow, fast in zip(averaged.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
        history.append(float(loss.detach()))
    return JointEmbedding(encoder.eval().requires_grad_(False), out, tuple(history))


def _transformer(width: int, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

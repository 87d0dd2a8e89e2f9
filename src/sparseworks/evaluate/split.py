"""Data of many owners, made from data of one: how unlike each other the clients of a federated training are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import CalibrationError

_TRIES = 1000


def dirichlet_split(
    labels: Int[Tensor, " examples"], clients: int, concentration: float = 0.5, *, least: int = 1, seed: int = 0
) -> list[Int[Tensor, " some"]]:
    """Positions of the examples of every client; shares of a class are drawn from Dirichlet(concentration, ..., concentration).

    Small concentrations give clients of few classes. Drawn anew until every client has `least` examples.

    Source: Hsu, Qi and Brown, 2019, arXiv 1909.06335.

    Raises:
        CalibrationError: fewer than `clients * least` examples, or a thousand draws leave some client with fewer.
    """
    if clients < 1 or concentration <= 0 or len(labels) < clients * least:
        raise CalibrationError(
            f"{len(labels)} examples cannot be split among {clients} clients of at least {least} with concentration "
            f"{concentration}; both must be positive."
        )
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels.cpu().numpy() == c) for c in np.unique(labels.cpu().numpy())]
    for _ in range(_TRIES):
        owned: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for members in classes:
            shares = rng.dirichlet(np.full(clients, concentration))
            cuts = (shares.cumsum()[:-1] * len(members)).astype(int)
            for mine, part in zip(owned, np.split(rng.permutation(members), cuts), strict=True):
                mine.append(part)
        if min(sum(map(len, mine)) for mine in owned) >= least:
            return [torch.from_numpy(np.sort(np.concatenate(mine))) for mine in owned]
    raise CalibrationError(
        f"No draw gives each of {clients} clients {least} examples: raise the concentration ({concentration}) or lower `least`."
    )

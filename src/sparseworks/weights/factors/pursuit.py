"""Many sparse codes at once: orthogonal matching pursuit on inner products, and the K-SVD update of atoms."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.exec.codes import BatchCholesky


def batch_omp(
    dictionary: Float[Tensor, "atoms features"],
    signals: Float[Tensor, "signals features"],
    count: int,
    *,
    group: int | None = None,
) -> tuple[Int[Tensor, "signals count"], Float[Tensor, "signals count"]]:
    """Atoms and coefficients of every signal: `solve.pursuit.omp`, with residuals known by inner products only.

    Each round takes argmax_k |<d_k, y>  - sum_j G_kj z_j| among the atoms not yet taken and fits z on all taken so far, G the
    inner products of the (unit) atoms. A signal that is met exactly takes further atoms with coefficient 0.

    Source: Rubinstein, Zibulevsky and Elad, 2008 (Batch-OMP).
    """
    gram, right = dictionary @ dictionary.T, signals @ dictionary.T
    factors = BatchCholesky(gram, right, count)
    group = len(dictionary) if group is None else group
    quota = count * group // len(dictionary)
    taken = torch.zeros_like(right, dtype=torch.bool)
    chosen = torch.empty(len(signals), count, dtype=torch.long, device=signals.device)
    residual, z = right, right.new_zeros(len(signals), 0)
    for n in range(count):
        full = taken.view(len(signals), -1, group).sum(dim=2) >= quota
        atoms = residual.abs().masked_fill(taken | full.repeat_interleave(group, dim=1), -1.0).argmax(dim=1)
        taken.scatter_(1, atoms.unsqueeze(1), True)
        factors.append(atoms)
        chosen[:, n] = atoms
        z = factors.solve()
        codes = torch.zeros_like(right).scatter_(1, chosen[:, : n + 1], z)
        residual = right - codes @ gram
    return chosen, z


def k_svd(
    signals: Float[Tensor, "signals features"],
    atoms: int,
    count: int,
    *,
    iterations: int,
    power: int,
    group: int | None = None,
) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "signals atoms"], Bool[Tensor, "signals atoms"]]:
    """Dictionary of unit atoms, codes, and the mask of the chosen atoms: the best of all iterations.

    The right singular vectors are the first dictionary: it begins at about the error of low rank.
    """
    dictionary = torch.linalg.svd(signals, full_matrices=False).Vh[:atoms].contiguous()
    best: tuple[float, Tensor, Tensor, Tensor] | None = None
    for i in range(iterations + 1):
        chosen, z = batch_omp(dictionary, signals, count, group=group)
        codes = torch.zeros_like(signals @ dictionary.T).scatter_(1, chosen, z)
        error = float((signals - codes @ dictionary).double().square().sum())
        if best is None or error < best[0]:
            mask = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, chosen, True)
            best = error, dictionary.clone(), codes.clone(), mask
        if i < iterations:
            update_atoms(dictionary, codes, signals, power)
    assert best is not None
    return best[1:]


def update_atoms(
    dictionary: Float[Tensor, "atoms features"],
    codes: Float[Tensor, "signals atoms"],
    signals: Float[Tensor, "signals features"],
    steps: int,
) -> None:
    """Every atom in turn, in place: the best rank-1 fit of its users' residual, by `steps` power iterations from itself.

    An atom without users takes the place of the signal that is represented worst.

    Source: Aharon, Elad and Bruckstein, 2006 (K-SVD).
    """
    residual = signals - codes @ dictionary
    for k in range(len(dictionary)):
        users = codes[:, k].nonzero().flatten()
        if not len(users):
            worst = residual.square().sum(dim=1).argmax()
            norm = residual[worst].norm()
            if norm > 0:
                dictionary[k] = residual[worst] / norm
            continue
        atom, z = dictionary[k], codes[users, k]
        part = residual[users] + z.unsqueeze(1) * atom
        for _ in range(steps):
            atom = z @ part
            atom = atom / atom.norm().clamp(min=1e-30)
            z = part @ atom
        dictionary[k], codes[users, k] = atom, z
        residual[users] = part - z.unsqueeze(1) * atom

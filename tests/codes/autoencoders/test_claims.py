"""What each method of autoencoders is said to be better at, against its baseline on planted data; a baseline in its place fails."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import nn

import sparseworks as sw
from sparseworks.codes.autoencoders import Rows, hoyer_density
from sparseworks.codes.autoencoders.stream import passes
from sparseworks.core.codes import Codes


def _fvu(x, rebuilt):
    rebuilt = rebuilt.detach()
    return float((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum())


def _planted(rows, atoms, l0, seed, d, zipf=1.0):
    """Sparse sums of atoms whose frequencies follow Zipf's law, and which differ in how many there are."""
    g = torch.Generator().manual_seed(seed)
    dictionary = F.normalize(torch.randn(atoms, d, generator=g), dim=1)
    share = (torch.arange(atoms) + 2.0) ** -zipf
    share = share / share.sum() * l0 * torch.rand(rows, 1, generator=g) * 2
    z = (torch.rand(rows, atoms, generator=g) < share) * (0.5 + torch.rand(rows, atoms, generator=g))
    return z @ dictionary + 0.02 * torch.randn(rows, d, generator=g)


def _used(sae, x):
    codes = sae.encode(x)
    return len(codes.indices[codes.values != 0].unique()) / sae.width


@pytest.fixture(scope="module")
def zipf():
    x = _planted(2000, 48, 3, 0, 48)
    names = ("topk_sae", "mutual_choice", "feature_choice")
    methods = [sw.method(n, k=3).with_(auxiliary=None) for n in names]
    found = sw.train_autoencoders(x, methods, width=192, steps=130, batch=256, lr=5e-3)
    return x, dict(zip(names, found, strict=True))


def test_mutual_choice_explains_more_at_equal_l0_where_complexity_varies(zipf):
    x, found = zipf
    fvu, l0 = {}, {}
    for name in ("topk_sae", "mutual_choice"):
        sae = found[name].train()
        with torch.no_grad():
            codes = [sae.encode(part) for part in x.split(250)]
            fvu[name] = _fvu(x, torch.cat([sae.decode(c) for c in codes]))
            l0[name] = sum(int((c.values != 0).sum()) for c in codes) / len(x)
        sae.eval()
    assert l0["mutual_choice"] <= l0["topk_sae"] + 1e-9 and l0["topk_sae"] == pytest.approx(3, abs=0.02)
    assert fvu["mutual_choice"] < 0.8 * fvu["topk_sae"], fvu


def test_feature_choice_leaves_no_latent_dead(zipf):
    """Mutual choice, of which fewer dead latents than TopK's are claimed, has more of them: a quarter of the latents are as many as there are
    features, it finds these and uses no other."""
    x, found = zipf
    used = {}
    for name, sae in found.items():
        out = sae.export(passes(Rows(x), 256)) if sae.rule.across else sae
        used[name] = _used(out, x)
    assert used["feature_choice"] == 1
    assert used["topk_sae"] < 0.9 and used["mutual_choice"] == pytest.approx(48 / 192, abs=0.02), used


def test_gated_and_jumprelu_do_not_shrink():
    x = _planted(2000, 48, 3, 1, 32)
    methods = [sw.method(n, l0=4.0).with_(auxiliary=None) for n in ("relu_sae", "gated_sae")]
    methods.append(sw.method("jumprelu_sae", l0=4.0, bandwidth=0.035))
    found = sw.train_autoencoders(x, methods, width=96, steps=150, batch=128, lr=5e-3)
    l0 = [sae.encode(x).nnz / len(x) for sae in found]
    fvu = [_fvu(x, sae(x)) for sae in found]
    assert max(l0[1:]) <= l0[0] + 0.7, l0
    assert max(fvu[1:]) < 0.8 * fvu[0], (fvu, l0)


def test_thresholds_explain_more_than_topk_and_fewer_latents_die_where_inputs_learn_what_nearly_is_on():
    x = _planted(4000, 128, 6, 0, 48)
    methods = [sw.method("topk_sae", k=6), *(sw.method("jumprelu_sae", l0=6.0, to_input=share) for share in (0.3, 0.0))]
    methods = [m.with_(after=3000) for m in methods]
    found = sw.train_autoencoders(x, methods, width=192, steps=200, batch=256, lr=5e-3)
    _, ours, published = found
    assert ours.encode(x).nnz / len(x) == pytest.approx(6, rel=0.02)
    fvu = [_fvu(x, sae(x)) for sae in found]
    assert max(fvu[1:]) < 0.7 * fvu[0], fvu
    assert 1 - _used(ours, x) < 0.6 * (1 - _used(published, x)), [_used(sae, x) for sae in found]


def _tree(rows, seed, d=32):
    """Two of eight parents, and one of three children each: orthogonal to the parent, and alike among siblings."""
    g = torch.Generator().manual_seed(seed)
    parents, children = F.normalize(torch.randn(8, d, generator=g), dim=1), []
    for p in parents:
        common = F.normalize(torch.randn(d, generator=g), dim=0)
        for _ in range(3):
            c = 0.9 * common + 0.6 * F.normalize(torch.randn(d, generator=g), dim=0)
            children.append(F.normalize(c - (c @ p) * p, dim=0))
    atoms = torch.cat([parents, torch.stack(children)])
    pair = torch.stack([torch.randperm(8, generator=g)[:2] for _ in range(rows)])
    child = 8 + pair * 3 + torch.randint(0, 3, (rows, 2), generator=g)
    z = torch.zeros(rows, 32).scatter(1, pair, 1 + torch.rand(rows, 2, generator=g))
    z = z.scatter(1, child, 0.7 + 0.5 * torch.rand(rows, 2, generator=g))
    return z @ atoms + 0.01 * torch.randn(rows, d, generator=g)


def test_pursuit_serves_any_k():
    """Trained at 2 steps: each further step lowers the error, where more latents of a TopK autoencoder add what was not there."""
    x = _tree(2500, 0)
    methods = [sw.method(name, k=2) for name in ("mp_sae", "topk_sae")]
    found = sw.train_autoencoders(x[:2000], methods, width=32, steps=200, batch=256, lr=1e-2)
    mp, topk = ([_fvu(x[2000:], sae.at(k=k)(x[2000:])) for k in (1, 2, 4, 6, 8, 12)] for sae in found)
    assert mp == sorted(mp, reverse=True), mp
    assert topk[-1] > 1.3 * min(topk) and mp[-1] < 0.6 * topk[-1], (mp, topk)


PARENTS, CHILDREN = [0, 1, 2, *range(12, 20)], [[3, 4, 5], [6, 7, 8], [9, 10, 11]]


def _authors_tree(rows, seed):
    """The toy of Costa et al.: (features, activations). A token has one of eleven parents, the first three four times as often as the others, and
    of the three children of one of these one or, in two of five cases, none: 1.36 features. Cosines: 0.1 within a level, else 0."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(20, 20, generator=g))[0]
    features = torch.empty(20, 20)
    for level in (PARENTS, *CHILDREN):
        n = len(level)
        features[level] = F.normalize(q[level] + ((1 + n / 9) ** 0.5 - 1) / n * q[level].sum(0), dim=1)
    parent = torch.multinomial(torch.tensor([0.2] * 3 + [0.05] * 8), rows, True, generator=g)
    child = torch.multinomial(torch.tensor([0.2, 0.2, 0.2, 0.4]), rows, True, generator=g)
    on, at = torch.zeros(rows, 20), torch.arange(rows)
    on[at, torch.tensor(PARENTS)[parent]] = 1
    has = (parent < 3) & (child < 3)
    on[at[has], 3 + 3 * parent[has] + child[has]] = 1
    return features, (on * (1.5 + 0.25 * torch.randn(rows, 20, generator=g))) @ features


def _tree_found(features, atoms):
    """(1 - |cos| to the nearest atom, mean; error of the cosines within levels, mean) of matched atoms."""
    cos = features @ F.normalize(atoms.detach(), dim=1).T
    row, column = (torch.from_numpy(i) for i in linear_sum_assignment(-cos.abs().numpy()))
    matched = F.normalize(atoms.detach(), dim=1)[column] * cos[row, column].sign()[:, None]
    off = [(a @ a.T - b @ b.T)[~torch.eye(len(a), dtype=torch.bool)] for a, b in ((matched[i], features[i]) for i in (PARENTS, *CHILDREN))]  # fmt: skip
    return float((1 - cos.abs().amax(1)).mean()), float(torch.cat(off).abs().mean())


def test_pursuit_finds_a_tree_of_features_that_topk_mixes():
    """Up to three steps a token, until 3 % of it are left, as the authors stop. Of four draws this holds for three; in the fourth (seed 0) errors were
    0.07 beside TopK's 0.06 and BatchTopK's 0.14, at a larger L0 (2.7)."""
    features, x = _authors_tree(8000, 1)
    methods = [
        sw.method("mp_sae", k=3, residual=0.03),
        *(sw.method(name, k=2) for name in ("topk_sae", "batch_topk_sae")),
    ]
    found = sw.train_autoencoders(x, methods, width=20, steps=500, batch=100, lr=3e-2, decay=0.2, seeds=[1] * 3)
    l0 = [sae.encode(x).nnz / len(x) for sae in found]
    assert l0[0] < min(l0[1:]), l0
    mp, topk, batch = (_tree_found(features, sae.W_dec) for sae in found)
    assert mp[0] < 0.5 * min(topk[0], batch[0]), (mp, topk, batch)
    assert mp[1] < 0.7 * min(topk[1], batch[1]), (mp, topk, batch)


def test_one_hierarchical_autoencoder_serves_all_budgets():
    x = _planted(2500, 96, 8, 0, 32, zipf=0.7)
    methods = [sw.method("hierarchical_topk", k=32), sw.method("topk_sae", k=32)]
    methods += [sw.method("topk_sae", k=k) for k in (4, 8, 16)]
    one, cut, *own = sw.train_autoencoders(x[:2000], methods, width=128, steps=140, batch=128, lr=1e-2)
    held = x[2000:]
    for k, alone in zip((4, 8, 16), own, strict=True):
        fvu = _fvu(held, one.at(k=k)(held))
        assert fvu < 0.9 * _fvu(held, cut.at(k=k)(held)), k
        assert fvu < 1.1 * _fvu(held, alone(held)), (k, fvu, _fvu(held, alone(held)))
    assert _fvu(held, one(held)) < 1.25 * _fvu(held, cut(held))  # at K itself nothing is gained


def test_the_first_latents_of_a_matryoshka_explain_more_alone():
    x = _planted(2000, 96, 6, 0, 32)
    methods = [sw.method(n, k=6) for n in ("matryoshka_sae", "batch_topk_sae")]
    found = sw.train_autoencoders(x, methods, width=128, steps=130, batch=128, lr=5e-3)
    alone = []
    for sae in found:
        c = sae.train().encode(x)
        alone.append(_fvu(x, sae.decode(Codes(c.values * (c.indices < 32), c.indices, c.width, c.lengths))))
    assert alone[0] < 0.8 * alone[1], alone


def test_features_of_a_k_sparse_autoencoder_serve_a_classifier_of_few_labels_better_than_dense_ones_and_than_few():
    """Mean accuracy of six draws of a hundred labels; twice as many latents at test as in training, as the paper does. A denoising autoencoder, which
    the paper's is well above, is level here: in three splits it was 0.2 points below, 0.2 above and 0.5 below."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32) / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    methods = [sw.method("k_sparse_ae", k=k, start=100) for k in (25, 3)]
    sparse, few = sw.train_autoencoders(x[train], methods, width=256, steps=250, batch=128, lr=2e-3)
    plain, denoising = (_dense_autoencoder(Rows(x[train]), hidden) for hidden in (0.0, 0.3))
    score = {}
    for name, of in {
        "sparse": lambda z: sparse.at(k=50).encode(z).dense(),
        "few": lambda z: few.at(k=6).encode(z).dense(),
        "plain": lambda z: plain(z).relu(),
        "denoising": lambda z: denoising(z).relu(),
    }.items():
        with torch.no_grad():
            a, b = of(x[train]).numpy(), of(x[test]).numpy()
        fits = [
            LogisticRegression(C=0.3, max_iter=5000).fit(a[i : i + 100] / a.std(), y[train[i : i + 100]])
            for i in range(0, 600, 100)
        ]
        score[name] = sum(fit.score(b / a.std(), y[test]) for fit in fits) / 6
    assert score["sparse"] > max(score["plain"], score["few"]) + 0.01, score
    assert score["sparse"] > score["denoising"] - 0.01, score


def _dense_autoencoder(stream, hidden):
    """Encoder of a ReLU autoencoder; `hidden`: share of the inputs that are set to 0 before they are to be rebuilt."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(64, 256), nn.Linear(256, 64)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for i in range(250):
        x = stream.batch(i, 128, 0).x
        loss = (decoder(encoder(F.dropout(x, hidden) * (1 - hidden)).relu()) - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return encoder


def test_few_quadratic_latents_explain_a_circle_and_alpha_lowers_density_at_small_cost():
    """Five circles in planes of their own, one a token, and noise."""
    g = torch.Generator().manual_seed(0)
    angle, which = 6.2832 * torch.rand(2048, generator=g), torch.randint(0, 5, (2048,), generator=g)
    planes = torch.linalg.qr(torch.randn(12, 12, generator=g))[0].reshape(6, 2, 12)
    x = torch.einsum("ni,nid->nd", torch.stack([angle.cos(), angle.sin()], 1), planes[which])
    x = x + 0.1 * torch.randn(2048, 12, generator=g)
    error, density = {}, {}
    for alpha in (0.0, 0.3):
        sae = sw.train_autoencoder(x, sw.method("bilinear_ae", alpha=alpha), width=48, steps=250, batch=256, lr=1e-2)
        with torch.no_grad():
            f = sae.latents(x)
            error[alpha], density[alpha] = float(sae.errors(f).mean()), float(hoyer_density(f).mean())
            if not alpha:
                assert _circle_by(sae, x[which == 0], planes[0]) > 0.8
    assert density[0.3] < 0.93 * density[0.0], density
    assert error[0.0] < error[0.3] < error[0.0] + 0.03, error


def _circle_by(sae, rows, plane, most=4):
    """Share of the circle's own xx^T that the `most` latents that use the plane most rebuild."""
    x = F.normalize(rows @ plane.T, dim=1)
    use = ((sae.left @ plane.T).norm(dim=1) * (sae.right @ plane.T).norm(dim=1)).topk(most).indices
    f = sae.latents(rows)[:, use]
    rebuilt = torch.einsum("bk,ki,kj->bij", f, sae.left[use] @ plane.T, sae.right[use] @ plane.T)
    rebuilt = (rebuilt + rebuilt.mT) / 2
    return 1 - float((torch.einsum("bi,bj->bij", x, x) - rebuilt).square().sum() / len(x))

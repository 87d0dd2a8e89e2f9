"""Sparse probing, absorption and disentanglement on planted dictionaries: the right one passes, one that is wrong in the way asked about fails."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparseworks.codes.autoencoders import absorption, disentanglement, pooled, probes, sparse_probing
from sparseworks.codes.autoencoders.probes import linear_probes, logistic
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, ShapeError
from sparseworks.exec.codes import decode


class Planted:
    """An autoencoder whose codes are told by a function."""

    def __init__(self, atoms, code):
        self.W_dec, self.code = atoms, code

    def encode(self, x):
        return Codes.from_dense(self.code(x))

    def decode(self, codes):
        return decode(codes, self.W_dec)


def _rotation(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0]


# -- sparse probing ---------------------------------------------------------------------------------------------------


def _texts(seed, classes=4, d=24, texts=40, tokens=16):
    """Each class' own direction is on in a third of its tokens, others as often everywhere; orthonormal atoms."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(texts)
    z = (torch.rand(len(y), tokens, d, generator=g) < 0.3).float() * torch.rand(len(y), tokens, d, generator=g)
    z[..., :classes] *= 2 * F.one_hot(y, classes).unsqueeze(1) + 0.2
    return z @ _rotation(d), y


def test_one_latent_of_the_right_dictionary_tells_a_class_and_of_a_rotated_one_does_not():
    found = {}
    for name, basis in (("right", _rotation(24)), ("rotated", _rotation(24, 1))):
        sae = Planted(basis, lambda x, basis=basis: (x @ basis.T).relu())
        (a, ya), (b, yb) = _texts(0), _texts(1)
        found[name] = sparse_probing(pooled(sae, a), ya, pooled(sae, b), yb, ks=(1, 5)).mean(1)
    assert found["right"][0] > 0.9 and found["rotated"][0] < 0.85, found
    assert found["rotated"][1] > found["rotated"][0]
    (a, ya), (b, yb) = _texts(0), _texts(1)
    mixed = ya[torch.randperm(len(ya), generator=torch.Generator().manual_seed(0))]
    assert abs(float(sparse_probing(a.mean(1), mixed, b.mean(1), yb).mean()) - 0.5) < 0.16


def test_pooled_leaves_out_what_is_masked():
    sae = Planted(torch.eye(3), lambda x: x.relu())
    x, mask = torch.ones(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    x[0, 2:] = 9
    assert torch.equal(pooled(sae, x, mask), torch.ones(2, 3))
    assert pooled(sae, x)[0, 0] == 5
    with pytest.raises(ShapeError):
        pooled(sae, x[0])


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_is_that_of_scikit_learn(balanced):
    from sklearn.linear_model import LogisticRegression

    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=g)
    y = x[:, 0] + 0.5 * torch.randn(80, generator=g) > 0.6
    w, b = logistic(x, y, balanced=balanced)
    peer = LogisticRegression(C=1.0, class_weight="balanced" if balanced else None, tol=1e-10, max_iter=5000)
    peer.fit(x.double().numpy(), y.numpy())
    assert w.tolist() == pytest.approx(peer.coef_[0].tolist(), abs=1e-5)
    assert float(b) == pytest.approx(float(peer.intercept_[0]), abs=1e-5)  # pyright: ignore[reportIndexIssue]


def test_a_step_that_was_refused_is_not_taken(monkeypatch):
    monkeypatch.setattr(probes, "_HALVINGS", 0)  # none is tried, so that none is accepted
    w, b = logistic(torch.arange(6.0).unsqueeze(1), torch.arange(6) > 2)
    assert w.tolist() == [0.0] and float(b) == 0  # pyright: ignore[reportIndexIssue]


def test_an_l1_penalty_leaves_the_one_feature_that_tells():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=g)
    y = (x[:, 7] > 0).long()
    w, _ = linear_probes(x, y, 2, l1=0.05)
    assert w[1].abs().argmax() == 7
    assert w[1].abs().sum() - w[1].abs().max() < 0.1 * w[1].abs().max()


# -- absorption -------------------------------------------------------------------------------------------------------


LETTERS, WORDS = 3, 60


def _words(absorbed):
    """Words are their letter's atom + their own; an autoencoder whose latents of some words hold the letter too, and then the letter's is off."""
    basis = _rotation(LETTERS + WORDS)
    letters, own = basis[:LETTERS], basis[LETTERS:]
    y = torch.arange(WORDS) % LETTERS
    x = 2 * letters[y] + own
    taken = torch.arange(WORDS) // LETTERS % 4 < absorbed  # so many of four words of each letter
    atoms = own + 2 * letters[y] * taken.unsqueeze(1)

    def code(rows):
        word = (rows @ own.T).argmax(1)
        size = atoms.norm(dim=1)[word]
        z = torch.zeros(len(rows), LETTERS + WORDS)
        z[torch.arange(len(rows)), LETTERS + word] = size
        z[torch.arange(len(rows)), y[word]] = 2.0 * ~taken[word]
        return z

    return Planted(torch.cat([letters, F.normalize(atoms, dim=1)]), code), x, y


def test_absorption_is_the_share_of_words_whose_letter_another_latent_carries():
    found = {}
    for absorbed in (0, 1):
        sae, x, y = _words(absorbed)
        assert torch.allclose(sae.decode(sae.encode(x)), x, atol=1e-5)
        rows = x.repeat_interleave(4, 0) + 0.02 * torch.randn(
            4 * WORDS, x.shape[1], generator=torch.Generator().manual_seed(0)
        )
        found[absorbed] = absorption(sae, rows, y.repeat_interleave(4), x, y, most=1)
        assert found[absorbed].classes.tolist() == [0, 1, 2] and found[absorbed].split == 1
    assert found[0].fraction < 0.01 and found[0].full == 0, found[0]
    assert found[1].full == pytest.approx(0.25, abs=0.02) and found[1].fraction == pytest.approx(0.25, abs=0.05), found[
        1
    ]


def test_a_split_letter_is_told_from_an_absorbed_one():
    """Two latents share the words of a letter: both are main ones, so that nothing is absorbed."""
    basis = _rotation(LETTERS + WORDS)
    y = torch.arange(WORDS) % LETTERS
    half = torch.arange(WORDS) // LETTERS % 2
    own = basis[LETTERS:]
    x = 2 * basis[:LETTERS][y] + own

    def code(rows):
        word = (rows @ own.T).argmax(1)
        z = torch.zeros(len(rows), 2 * LETTERS + WORDS)
        z[torch.arange(len(rows)), 2 * LETTERS + word] = 1.0
        z[torch.arange(len(rows)), 2 * y[word] + half[word]] = 2.0
        return z

    atoms = torch.cat([basis[:LETTERS].repeat_interleave(2, 0), own])
    found = absorption(Planted(atoms, code), x.repeat(3, 1), y.repeat(3), x, y, most=4)
    assert found.split == 2 and found.full == 0 and found.fraction < 0.05, found


# -- disentanglement --------------------------------------------------------------------------------------------------


def _entities(n=300):
    """Three attributes of four values, each value an atom of its own."""
    g = torch.Generator().manual_seed(0)
    atoms = _rotation(16)[:12]
    attributes = torch.randint(0, 4, (n, 3), generator=g)
    on = (attributes + torch.tensor([0, 4, 8])).flatten()
    x = atoms[on].view(n, 3, 16).sum(1) + 0.02 * torch.randn(n, 16, generator=g)
    return atoms, x, attributes


def _reads(atoms):
    return [lambda rows, first=first: rows @ atoms[first : first + 4].T for first in (0, 4, 8)]


def test_latents_of_single_values_are_disentangled_and_those_of_mixtures_are_not():
    atoms, x, attributes = _entities()
    mixed = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))[0] @ atoms
    options = {"pairs": 600, "batch": 64, "lr": 1e-2}
    right = disentanglement(Planted(atoms, lambda r: (r @ atoms.T).relu()), x, attributes, **options)
    wrong = disentanglement(Planted(mixed, lambda r: r @ mixed.T), x, attributes, **options)
    assert right.score > 0.97 and right.latents.tolist() == [4, 4, 4], right
    assert wrong.score < 0.85, wrong


def test_attributes_of_32_bits_are_those_of_64():
    atoms, x, attributes = _entities(100)
    sae = Planted(atoms, lambda r: (r @ atoms.T).relu())
    read = _reads(atoms)
    ours, theirs = (
        disentanglement(sae, x, a, read, pairs=60, batch=64, lr=1e-2) for a in (attributes.int(), attributes)
    )
    assert torch.equal(ours.cause, theirs.cause) and torch.equal(ours.latents, theirs.latents)


def test_a_class_of_which_no_word_is_found_is_not_counted():
    _, x, y = _words(0)
    sae = Planted(torch.eye(x.shape[1]), lambda rows: rows.relu())
    lost = torch.where((y == 2).unsqueeze(1), -x, x)  # what the probe has learned of the last letter, turned round
    found = absorption(sae, x, y, lost, y, most=1, least_f1=0.0)
    assert found.probe_f1[2] == 0 and 2 not in found.classes.tolist() and found.fraction == found.fraction


def test_refusals():
    _, x, attributes = _entities(20)
    sae = Planted(torch.eye(16), lambda r: r)
    with pytest.raises(ShapeError):
        disentanglement(sae, x, attributes[:5])
    with pytest.raises(CalibrationError, match="at least two"):
        disentanglement(sae, x, attributes[:, :1])
    for share, pairs in ((0.0, 60), (1.0, 60), (0.7, 2)):
        with pytest.raises(BudgetError, match="share"):
            disentanglement(sae, x, attributes, share=share, pairs=pairs)
    with pytest.raises(CalibrationError, match="too few"):
        disentanglement(sae, x, attributes, _reads(_rotation(16)[:12]), pairs=3, share=0.1)
    with pytest.raises(CalibrationError, match="one value"):
        disentanglement(sae, x, torch.stack([attributes[:, 0], attributes[:, 0] * 0], 1))
    with pytest.raises(ShapeError):
        sparse_probing(x, attributes[:5, 0], x, attributes[:, 0])
    with pytest.raises(CalibrationError, match="two classes"):
        sparse_probing(x, attributes[:, 0] * 0, x, attributes[:, 0] * 0)
    with pytest.raises(CalibrationError, match="both sides"):
        logistic(x, torch.ones(20, dtype=torch.bool))
    with pytest.raises(ShapeError):
        absorption(sae, x, attributes[:5, 0], x, attributes[:, 0])
    with pytest.raises(CalibrationError, match="F1"):
        absorption(sae, x, attributes[:, 0], x, attributes[:, 0], least_f1=1.1)

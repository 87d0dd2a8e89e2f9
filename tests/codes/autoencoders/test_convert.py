"""SAELens's format: there and back, computed as they compute, damage refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparseworks as sw
from sparseworks.codes.autoencoders import Plain
from sparseworks.codes.autoencoders.convert import CONFIG, WEIGHTS, load_saelens, save_saelens
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.errors import CheckpointError, RecipeError

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def _trained(name, **options):
    method = sw.method(name, **options).with_(auxiliary=None)
    return sw.train_autoencoder(X, method, width=24, steps=20, batch=32, lr=3e-3)


def _theirs(folder):
    """What SAELens computes from the files."""
    t, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    if config["architecture"] == "matching_pursuit":
        left, z, going = X - t["b_dec"], torch.zeros(len(X), len(t["W_dec"])), torch.ones(len(X), 1)
        for _ in range(config["max_iterations"]):
            value, index = (left @ t["W_dec"].T).relu().max(dim=1, keepdim=True)
            before, value = z != 0, value * going
            z, left = z.scatter_add(1, index, value), left - value * t["W_dec"][index[:, 0]]
            same = config["stop_on_duplicate_support"] & ((z != 0) == before).all(1, keepdim=True)
            going = going * ~(same | (left.norm(dim=1, keepdim=True) < config["residual_threshold"]))
        return z, z @ t["W_dec"] + t["b_dec"]
    pre = (X - t["b_dec"] * config["apply_b_dec_to_input"]) @ t["W_enc"]
    if config["architecture"] == "gated":
        z = (pre + t["b_gate"] > 0) * ((X - t["b_dec"]) @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
    else:
        z = (pre + t["b_enc"]).relu()
    if config["architecture"] == "topk":
        values, indices = z.topk(config["k"], dim=1)
        z = torch.zeros_like(z).scatter(1, indices, values)
    if config["architecture"] == "jumprelu":
        z = z * (pre + t["b_enc"] > t["threshold"])
    return z, z @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk_sae", {"k": 3}),
        ("relu_sae", {"l0": 3.0}),
        ("gated_sae", {"l0": 3.0}),
        ("mp_sae", {"k": 3}),
        ("mp_sae", {"k": 12, "tau": 1.0, "again": False}),
        ("batch_topk_sae", {"k": 3}),
        ("jumprelu_sae", {"threshold": 0.5}),
    ],
)
def test_there_and_back_and_as_they_compute_it(tmp_path, name, options):
    sae = _trained(name, **options)
    if name in ("batch_topk_sae", "jumprelu_sae"):
        with pytest.raises(RecipeError, match="export"):
            save_saelens(sae, tmp_path)
        sae = sae.export(iter([Batch(X)]))
    save_saelens(sae, tmp_path)
    again = load_saelens(tmp_path)
    codes, rebuilt = _theirs(tmp_path)
    with torch.no_grad():
        assert torch.allclose(again.encode(X).dense(), sae.encode(X).dense(), atol=1e-6)
        assert torch.allclose(codes, sae.encode(X).dense(), atol=1e-5)
        assert torch.allclose(rebuilt, sae(X), atol=1e-5)


def test_norms_of_a_rescaling_decoder_move_into_the_encoder(tmp_path):
    save_saelens(_trained("topk_sae", k=3), tmp_path)
    config, t = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    config |= {"rescale_acts_by_decoder_norm": True}
    del config["sparseworks"]
    t["W_dec"] = t["W_dec"] * torch.linspace(0.5, 2, 24).unsqueeze(1)
    save_file(t, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    norms = t["W_dec"].norm(dim=1)
    z = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    values, indices = z.relu().topk(3)
    z = torch.zeros_like(z).scatter(1, indices, values)
    with torch.no_grad():
        assert torch.allclose(load_saelens(tmp_path)(X), z / norms @ t["W_dec"] + t["b_dec"], atol=1e-5)


def test_a_pursuit_that_says_nothing_of_its_end_ends_as_theirs(tmp_path):
    sae = _trained("mp_sae", k=4)
    save_saelens(sae, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for name in ("max_iterations", "residual_threshold", "stop_on_duplicate_support", "sparseworks"):
        del config[name]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    rule = load_saelens(tmp_path).rule
    assert (rule.k, rule.tau, rule.again) == (8, 0.01, False)
    with pytest.raises(RecipeError, match="no form"):
        save_saelens(sae.at(residual=0.1), tmp_path)


def test_damage_and_what_is_not_known_are_refused(tmp_path):
    save_saelens(_trained("topk_sae", k=3), tmp_path)
    config, t = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    for change in ({"architecture": "temporal"}, {"normalize_activations": "layer_norm"}, {"k": None}):
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError):
            load_saelens(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    save_file(t | {"W_dec": t["W_dec"].flip(0).contiguous()}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="outputs"):
        load_saelens(tmp_path)
    save_file(t | {"b_enc": torch.zeros(3)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_saelens(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="no readable"):
        load_saelens(tmp_path)


def test_the_plain_face_gives_tensors_of_any_leading_dimensions():
    sae = _trained("topk_sae", k=3)
    plain, x = Plain(sae), X.unflatten(0, (4, 16))
    with torch.no_grad():
        z = plain.encode(x)
        assert z.shape == (4, 16, 24) and torch.equal(z.flatten(0, 1), sae.encode(X).dense())
        assert torch.allclose(plain(x).flatten(0, 1), sae(X), atol=1e-6)
        assert torch.allclose(plain.decode(torch.zeros(2, 24)), sae.b_dec.expand(2, 8))
    assert plain.W_enc.shape == (8, 24) and plain.W_dec is sae.W_dec and plain.cfg.d_sae == 24
    assert plain.dtype == torch.float32 and plain.device.type == "cpu"
    with pytest.raises(AttributeError):
        plain.W_other  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk_sae", {"k": 3}),
        ("relu_sae", {"l0": 3.0}),
        ("gated_sae", {"l0": 3.0}),
        ("mp_sae", {"k": 3}),
        ("mp_sae", {"k": 12, "tau": 1.0, "again": False}),
        ("batch_topk_sae", {"k": 3}),
        ("jumprelu_sae", {"l0": 3.0}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_package_itself_reads_ours_and_we_read_what_it_writes(tmp_path, name, options):
    """Only where `sae-lens` is installed: it needs a whole interpretability framework. Seen equal with 6.54.12."""
    theirs = pytest.importorskip("sae_lens", exc_type=ImportError).SAE
    sae = _trained(name, **options)
    sae = sae.export(iter([Batch(X)])) if name in ("batch_topk_sae", "jumprelu_sae") else sae
    save_saelens(sae, tmp_path / "ours")
    other = theirs.load_from_disk(str(tmp_path / "ours"))
    other.save_model(str(tmp_path / "theirs"))
    again = load_saelens(tmp_path / "theirs")
    with torch.no_grad():
        codes, found = sae.encode(X), other.encode(X)
        assert torch.equal(found != 0, codes.dense() != 0)
        assert torch.allclose(found, codes.dense(), atol=1e-5)
        assert torch.allclose(other.decode(found), sae.decode(codes), atol=1e-5)
        assert torch.allclose(again(X), sae(X), atol=1e-5)

"""Training: resumed bit for bit, many in one pass, two processes as one, dead latents renewed, refusals."""

from __future__ import annotations

import datetime
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing

import sparseworks as sw
from sparseworks.codes.autoencoders import Rows, train
from sparseworks.codes.autoencoders.auxiliary import Resample
from sparseworks.core.errors import (
    BudgetError,
    CalibrationError,
    CheckpointError,
    NonFiniteError,
    RecipeError,
    ShapeError,
)

METHODS = {
    "topk": sw.method("topk_sae", k=3, after=64),
    "batch": sw.method("feature_choice", k=3, mutual=0.5),
    "jump": sw.method("jumprelu_sae", l0=3.0, bandwidth=0.035),
    "gated": sw.method("gated_sae", l0=3.0).with_(auxiliary=Resample(every=4, after=64)),
}
HOW = {"width": 24, "steps": 12, "batch": 32, "lr": 3e-3}


def _data(rows=160):
    g = torch.Generator().manual_seed(0)
    return (torch.rand(rows, 20, generator=g) < 0.2).float() @ torch.randn(20, 8, generator=g)


def _same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class _KilledError(Exception):
    pass


class _Dies(Rows):
    """Activations that end the process' run in the middle."""

    def batch(self, index, size, seed):
        if index == 8:
            raise _KilledError
        return super().batch(index, size, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_was_killed_goes_on_and_ends_bit_for_bit(tmp_path, dtype):
    methods = list(METHODS.values())
    straight = sw.train_autoencoders(_data(), methods, dtype=dtype, **HOW)
    with pytest.raises(_KilledError):
        sw.train_autoencoders(_Dies(_data()), methods, dtype=dtype, workdir=tmp_path, save_every=5, **HOW)
    before = torch.get_rng_state()
    resumed = sw.train_autoencoders(_data(), methods, dtype=dtype, workdir=tmp_path, save_every=5, **HOW)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(_same(a, b) for a, b in zip(straight, resumed, strict=True))
    assert all(p.dtype == dtype for sae in resumed for p in sae.parameters())


def test_states_of_different_age_catch_up(tmp_path):
    """A process may die between the states of two autoencoders."""
    methods = list(METHODS.values())[:2]
    straight = sw.train_autoencoders(_data(), methods, **HOW)
    with pytest.raises(_KilledError):
        sw.train_autoencoders(_Dies(_data()), methods, workdir=tmp_path, save_every=4, **HOW)
    (tmp_path / "autoencoder-1.safetensors").unlink()
    resumed = sw.train_autoencoders(_data(), methods, workdir=tmp_path, save_every=4, **HOW)
    assert all(_same(a, b) for a, b in zip(straight, resumed, strict=True))


def test_many_in_one_pass_are_each_as_alone_and_seeds_differ():
    together = sw.train_autoencoders(
        _data(), ["topk_sae", METHODS["topk"], METHODS["topk"]], seeds=[0, 0, 1], **HOW | {"width": 40}
    )
    alone = sw.train_autoencoder(_data(), METHODS["topk"], **HOW | {"width": 40})
    assert _same(together[1], alone)
    assert not torch.equal(together[1].W_dec, together[2].W_dec)


def test_damaged_and_foreign_states_are_refused(tmp_path):
    sw.train_autoencoder(_data(), METHODS["topk"], workdir=tmp_path, **HOW)
    with pytest.raises(CheckpointError, match="another training"):
        sw.train_autoencoder(_data(), METHODS["topk"], workdir=tmp_path, **HOW | {"lr": 1e-3})
    with pytest.raises(CheckpointError, match="another"):
        sw.train_autoencoder(_data(), METHODS["jump"], workdir=tmp_path, **HOW)
    path = tmp_path / "autoencoder-0.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not a readable"):
        sw.train_autoencoder(_data(), METHODS["topk"], workdir=tmp_path, **HOW)


def test_scale_is_folded_away_so_that_codes_are_homogeneous():
    for name in ("topk", "batch", "jump", "gated"):
        method = METHODS[name].with_(auxiliary=None)
        one, ten = (sw.train_autoencoder(scale * _data(), method, clip=0.0, **HOW) for scale in (1.0, 16.0))
        assert torch.allclose(ten(16 * _data()), 16 * one(_data()), atol=1e-3), name
        assert float(one.scale) == 1


def test_decoder_rows_keep_unit_norm_and_the_bias_begins_at_the_median():
    sae = sw.train_autoencoder(_data() + 5, METHODS["topk"], **HOW | {"steps": 1, "lr": 0.0})
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(24), atol=1e-6)
    assert torch.allclose(F.normalize(sae.encoder, dim=1), sae.W_dec, atol=1e-6)
    x = F.normalize(torch.randn(4000, 8), dim=1)
    codes = sae.encode(x + sae.b_dec)
    assert (sae.decode(codes) - sae.b_dec).detach().norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.1)
    spread = lambda b: (_data() + 5 - b).norm(dim=1).sum()  # noqa: E731
    assert spread(sae.b_dec) <= spread((_data() + 5).mean(0))


@pytest.mark.parametrize("l0", [8.0, 32.0])
def test_the_l0_asked_for_is_met_in_a_short_training(l0):
    """Within a twentieth after 80 steps, although thresholds' own steps are small; thresholds are all finite and differ."""
    g = torch.Generator().manual_seed(0)
    share = 12 * (torch.arange(100) + 5.0) ** -1
    x = (
        (torch.rand(6000, 100, generator=g) < share.clamp(max=0.5)) * torch.rand(6000, 100, generator=g)
    ) @ torch.randn(100, 32, generator=g)
    methods = [METHODS[name].with_(l0=l0, auxiliary=None) for name in ("jump", "gated")]
    for sae in sw.train_autoencoders(x, methods, width=128, steps=80, batch=128, lr=2e-3):
        found = float((sae.encode(x).values != 0).sum()) / len(x)
        assert found == pytest.approx(l0, rel=0.05), (sae.method.name, found)


def test_a_latent_that_was_silent_is_renewed_and_the_optimiser_forgets_it():
    trainer = train.Trainer(
        METHODS["gated"].with_(auxiliary=Resample(every=1, after=32)), Rows(_data()).all, 24, train.Schedule(9)
    )
    trainer.step(0, Rows(_data()).all)
    trainer.model.silent[3] = 100
    with torch.no_grad():
        trainer.model.encoder_weight[3] = 0
        trainer.model.b_gate[3] = -100
    trainer.step(1, Rows(_data()).all)
    assert int(trainer.model.silent[3]) == 0
    first = trainer.optimiser.adam.state[trainer.model.encoder_weight]["exp_avg"]
    assert not first[3].any() and first[2].any()


def test_dead_latents_get_inputs_drawn_by_the_fourth_power_of_their_error_none_twice():
    sae = train.Trainer(METHODS["gated"], Rows(_data()).all, 24, train.Schedule(9)).model.eval()
    sae.silent[:20] = 100
    x, g = torch.randn(12, 8), torch.Generator().manual_seed(0)
    error = torch.ones(12, 8)
    error[5], error[9:] = 3.0, 0.0  # 3 ** 4 of 81 + 8
    first = [int((F.cosine_similarity(x, _renewed(sae, x, error, g, 1)[0]) > 0.999).nonzero()) for _ in range(200)]
    assert first.count(5) > 165 and set(first) <= set(range(9))
    atoms = _renewed(sae, x, error, g, 20)  # nine examples have an error, so that so many come back
    assert len(atoms) == 9 and len({int(i) for i in (atoms @ F.normalize(x, dim=1).T).argmax(1)}) == 9


def _renewed(sae, x, error, g, dead):
    sae.silent.zero_()
    sae.silent[:dead] = 100
    with torch.no_grad():
        return sae.W_dec[Resample(after=64).renew(sae, x, error, g)]


@pytest.mark.parametrize(
    ("name", "options"), [("topk_sae", {"k": 3}), ("jumprelu_sae", {"l0": 3.0, "bandwidth": 0.035})]
)
def test_aux_k_wakes_dead_latents(name, options):
    """All latents but a few are switched off by their bias; only with the auxiliary loss do they come back."""
    found = {}
    for weight in (0.0, 1 / 32):
        own = sw.method(name, **options)
        method = own.with_(auxiliary=replace(own.auxiliary, weight=weight, after=128))
        trainer = train.Trainer(method, Rows(_data()).all, 24, train.Schedule(200, 64, lr=3e-2))
        with torch.no_grad():
            trainer.model.b_enc[4:] = -4
        for i in range(200):
            trainer.step(i, Rows(_data()).batch(i, 64, 0))
        found[weight] = int((trainer.model.silent < 128).sum())
    assert found[1 / 32] > found[0.0] + 5


def test_refusals():
    with pytest.raises(RecipeError, match="autoencoders"):
        sw.train_autoencoder(_data(), "omp" if "omp" in sw.core.published.METHODS else "wanda", **HOW)  # type: ignore[attr-defined]
    with pytest.raises(BudgetError):
        sw.train_autoencoder(_data(), "topk_sae", **HOW | {"steps": 0})
    with pytest.raises(BudgetError):
        sw.method("topk_sae", k=0)
    with pytest.raises(NonFiniteError):
        sw.train_autoencoder(torch.full((4, 8), torch.nan), "topk_sae", **HOW)
    with pytest.raises(CalibrationError):
        sw.train_autoencoder(torch.zeros(0, 8), "topk_sae", **HOW)
    with pytest.raises(ShapeError):
        sw.train_autoencoder(torch.zeros(8), "topk_sae", **HOW)
    with pytest.raises(CalibrationError, match="transcoder"):
        sw.train_autoencoder(_data(), sw.method("topk_sae", k=3, target="transcode"), **HOW)
    sae = sw.train_autoencoder(_data(), METHODS["topk"], **HOW)
    with pytest.raises(ShapeError):
        sae.encode(torch.zeros(2, 9))
    with pytest.raises(NonFiniteError):
        sae.encode(torch.full((2, 8), torch.inf))


def test_a_transcoder_learns_another_activation():
    g = torch.Generator().manual_seed(0)
    x = _data(800)
    y = torch.tanh(x @ torch.randn(8, 5, generator=g))
    method = sw.method("topk_sae", k=6, target="transcode").with_(auxiliary=None)
    sae = sw.train_autoencoder(Rows(x, target=y), method, **HOW | {"steps": 300, "batch": 128, "width": 48})
    assert sae.W_dec.shape == (48, 5) and sae.cfg.d_out == 5
    with torch.no_grad():
        rebuilt = sae(x)
    assert float((rebuilt - y).square().sum() / (y - y.mean(0)).square().sum()) < 0.45


# -- two processes ----------------------------------------------------------------------------------------------------


def _worker(other, port, folder):
    rank, limit = other + 1, datetime.timedelta(seconds=120)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=limit)
    found = sw.train_autoencoders(_data(), list(METHODS.values()), workdir=folder / "state", **HOW)
    torch.save([sae.state_dict() for sae in found], folder / f"{rank}.pt")
    (folder / "full").mkdir(exist_ok=True)
    trainer = train.Trainer(METHODS["topk"], Rows(_data()).all, 24, train.Schedule(9))
    trainer.save = _full
    with pytest.raises(CheckpointError, match="disk is full"):
        train._save([trainer], folder / "full")
    dist.destroy_process_group()


def _full(path):
    raise CheckpointError(f"{path}: the disk is full.")


def test_two_processes_agree_and_rules_by_token_are_as_in_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = multiprocessing.spawn(_worker, (port, tmp_path), nprocs=1, join=False)  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    _worker(-1, port, tmp_path)  # this process is the first
    torch.set_num_threads(threads)
    assert other.join(60)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, a, b in zip(METHODS, first, second, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a), name
    methods = [METHODS["topk"].with_(auxiliary=None), METHODS["jump"]]
    alone = sw.train_autoencoders(_data(), methods, **HOW)[1].state_dict()
    assert all(torch.allclose(alone[k].double(), first[2][k].double(), atol=1e-4) for k in alone)

"""What every trained form of sparse attention must do: `check_trained_attention`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparseworks.attention import AttentionMethod, Heads, sparse_attention
from sparseworks.attention.trained import Gate, Sizes, TrainedAttention
from sparseworks.attention.trained.gate import NAME
from sparseworks.core.recipe import Recipe
from sparseworks.testing.attention import _check_kept, example_heads, full
from sparseworks.testing.examples import require

SIZES = Sizes(width=32, heads=4, kv_heads=2, d=16, layer=0, layers=3)


def check_trained_attention(method: TrainedAttention | str, *, tokens: int = 128) -> None:
    """Raise AssertionError unless the modules of `method` keep what every trained form must.

    A full budget is dense attention to 1e-5; every query keeps a key; no output hears of the future; a batch is as its
    sequences one by one; what it becomes at inference gives what the module gives; weights and recipe bring it back.
    Budgets that let something go at `tokens` tokens are the caller's: `method.with_(trainable=type(method.trainable).example())`.
    """
    method = TrainedAttention.of(method)
    tokens = getattr(method.trainable, "tokens", tokens)
    recipe = Recipe.of(method, kind=TrainedAttention)
    require(Recipe.from_yaml(recipe.to_yaml()) == recipe, f"{method.name}: its recipe does not bring it back.")
    with torch.no_grad():
        built = method.build(SIZES)
        if isinstance(built, Gate):
            _Gates(method, tokens).check()
        elif method.trainable.replaces:
            _check_module(method, tokens)
        elif hasattr(method.trainable, "fields"):
            _check_model(method)
        else:
            _check_volume(method)


class _Gates:
    """A gate in each of three layers, which all attend alike: gates may listen to those before them."""

    def __init__(self, method: TrainedAttention, tokens: int):
        self.method, self.name = method, method.name
        self.heads = _with_hidden(example_heads(tokens, tokens, causal=not method.trainable.bidirectional))
        self.exports = [e for e in method.export() if isinstance(e, AttentionMethod) and "prefill" in e.phases]

    def check(self) -> None:
        gates, heads = _gates(self.method, 0), self.heads
        _check_full_budget(gates, heads, self.exports, self.name)
        for gate in gates:
            _stir(gate, 1)
        out = _attend(gates, heads)
        _check_rows(out, self.name)
        self._check_exports(gates, out)
        if heads.causal:
            half = heads.keys // 2
            later = _attend(gates, _changed(heads, half))
            _check_future(out[..., :half, :], later[..., :half, :], self.name)
        for b in range(heads.batch):
            q, k, v, hidden = (t[b : b + 1] for t in (heads.q, heads.k, heads.v, heads.hidden))  # type: ignore[index]
            alone = _attend(gates, heads.with_(q=q, k=k, v=v, hidden=hidden))
            require(_close(alone, out[:, b : b + 1]), f"{self.name}: a sequence alone differs.")
        others = _gates(self.method, 2)
        for mine, other in zip(gates, others, strict=True):
            other.load_state_dict(mine.state_dict())
        require(torch.equal(_attend(others, heads), out), f"{self.name}: its weights do not bring it back.")

    def _check_exports(self, gates: Sequence[Gate], out: Tensor) -> None:
        for export in self.exports:
            for layer, gate in enumerate(gates):
                heads = _in_layer(self.heads, gate, layer)
                gate(heads)  # those behind it listen to what it decides here
                (found, _), kept = sparse_attention(heads, export)
                if kept is None:
                    continue
                _check_kept(heads, kept, export)
                if type(gate).forward is Gate.forward:  # others attend densely while they learn
                    require(
                        _close(found, out[layer]),
                        f"{self.name}: layer {layer} attends otherwise at inference than in training.",
                    )
                    require(
                        abs(kept.density(heads) - gate.density) < 1e-5,
                        f"{self.name}: the gate reports density {gate.density}, kept are {kept.density(heads)}.",
                    )


def _gates(method: TrainedAttention, seed: int) -> list[Gate]:
    torch.manual_seed(seed)
    sizes = [Sizes(**{**vars(SIZES), "layer": layer}) for layer in range(SIZES.layers)]
    gates = [method.build(s).eval() for s in sizes]
    for gate in gates:
        gate.join(dict(enumerate(gates)))  # type: ignore[operator]
    return gates  # type: ignore[return-value]


def _attend(gates: Sequence[Gate], heads: Heads) -> Tensor:
    return torch.stack([gate(_in_layer(heads, gate, layer)) for layer, gate in enumerate(gates)])


def _in_layer(heads: Heads, gate: Gate, layer: int) -> Heads:
    """The call as the layer makes it, whose attention module holds the gate and has projected what it read."""
    module = nn.Module()
    module.add_module(NAME, gate)
    made = {"q_proj": heads.q, "k_proj": heads.k, "v_proj": heads.v}
    gate.outputs = {name: made[name].transpose(1, 2).flatten(2) for name in gate.watches}
    return heads.with_(layer=layer, layers=SIZES.layers, module=module, memory={})


def _with_hidden(heads: Heads) -> Heads:
    draw = torch.Generator().manual_seed(3)
    return heads.with_(hidden=torch.randn(heads.batch, heads.keys, SIZES.width, generator=draw))


def _changed(heads: Heads, first: int) -> Heads:
    q, k, v, hidden = (t.clone() for t in (heads.q, heads.k, heads.v, heads.hidden))  # type: ignore[union-attr]
    for t in (q, k, v):
        t[:, :, first:] = 2.0 - t[:, :, first:]
    hidden[:, first:] = 2.0 - hidden[:, first:]
    return heads.with_(q=q, k=k, v=v, hidden=hidden)


def _stir(module: nn.Module, seed: int) -> None:
    """Weights as a training might leave them: those of a fresh gate keep all."""
    draw = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=draw) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 1.0))


def _check_full_budget(gates: Sequence[Gate], heads: Heads, exports: Sequence[AttentionMethod], name: str) -> None:
    """Of fresh gates, whose bias is zero."""
    dense = heads.scores().softmax(-1) @ heads.shared(heads.v)
    for export in exports:
        assert export.score is not None
        whole = export.with_(budget=full(export.budget), score=export.score.everything())
        for layer, gate in enumerate(gates):
            at = _in_layer(heads, gate, layer)
            gate(at)
            (out, _), _ = sparse_attention(at, whole)
            error = float((out - dense).abs().max())
            require(error <= 1e-5, f"{name}: with a full budget it differs from dense attention by {error:.1e}.")


def _check_module(method: TrainedAttention, tokens: int) -> None:
    """A module in the place of an attention module."""
    name, spec = method.name, method.trainable
    hidden = torch.randn(2, tokens, SIZES.width, generator=torch.Generator().manual_seed(3))
    whole = _built(method.with_(trainable=spec.everything(tokens)), 0)
    error = float((whole(hidden)[0] - whole.dense(hidden)).abs().max())  # type: ignore[operator]
    require(error <= 1e-5, f"{name}: with a full budget it differs from dense attention by {error:.1e}.")
    module = _built(method, 0)
    if hasattr(module, "fit_thresholds"):  # expert choice looks ahead; the rule that stands in for it must not
        module.fit_thresholds(hidden)  # type: ignore[operator]
    out = module(hidden)[0]
    _check_rows(out, name)
    changed, half = hidden.clone(), tokens // 2
    changed[:, half:] = 2.0 - changed[:, half:]
    _check_future(out[:, :half], module(changed)[0][:, :half], name)
    alone = torch.cat([module(row)[0] for row in hidden.split(1)])
    require(_close(alone, out), f"{name}: a sequence alone differs.")
    other = _built(method, 1)
    other.load_state_dict(module.state_dict())
    require(torch.equal(other(hidden)[0], out), f"{name}: its weights do not bring it back.")


def _check_model(method: TrainedAttention) -> None:
    """A model of its own: rows of `fields` numbers, and a form `sparse` that multiplies what its gates leave."""
    name, spec = method.name, method.trainable
    x = torch.rand(16, spec.fields, generator=torch.Generator().manual_seed(3))  # type: ignore[attr-defined]
    whole = _built(method.with_(trainable=spec.everything(x.shape[1])), 0)
    out = whole(x)
    require(whole.density == 1.0, f"{name}: a full budget leaves fields out.")  # type: ignore[comparison-overlap]
    require(_close(whole.sparse(x), out), f"{name}: with a full budget the sparse form differs.")  # type: ignore[operator]
    model = _built(method, 0)
    _stir(model, 1)
    out, reported = model(x), model.density
    gates = model.gates(model.embed(x))  # type: ignore[operator]
    require(bool((gates > 0).any(-1).all()), f"{name}: a row keeps no field.")
    counted = float((gates > 0).float().mean())
    require(abs(counted - float(reported)) < 1e-5, f"{name}: reports density {reported}, counted are {counted}.")  # type: ignore[arg-type]
    require(_close(model.sparse(x), out), f"{name}: the sparse form differs.")  # type: ignore[operator]
    alone = torch.cat([model(row) for row in x.split(1)])
    require(_close(alone, out), f"{name}: a row alone differs.")
    other = _built(method, 1)
    other.load_state_dict(model.state_dict())
    require(torch.equal(other(x), out), f"{name}: its weights do not bring it back.")


def _check_volume(method: TrainedAttention) -> None:
    """A layer over occupied voxels: features (tokens, width), coordinates, and the sample of each."""
    name, spec = method.name, method.trainable
    g = torch.Generator().manual_seed(3)
    voxels = (torch.rand(2, 12, 12, 12, generator=g) < 0.1).nonzero()
    sample, voxels = voxels[:, 0], voxels[:, 1:]
    x = torch.randn(len(voxels), SIZES.width, generator=g)
    module = _built(method, 0)
    out = module(x, voxels, sample)
    _check_rows(out, name)
    require(0 < module.density < 1, f"{name}: reports density {module.density}.")  # type: ignore[operator]
    first = sample == 0
    alone = torch.cat([module(x[at], voxels[at]) for at in (first, ~first)])
    require(_close(alone, torch.cat([out[first], out[~first]])), f"{name}: a sample alone differs.")
    whole = _built(method.with_(trainable=spec.everything(len(x))), 0)
    selected = whole.branches(x[first], voxels[first])[0][1]  # type: ignore[operator]
    q, k, v = (getattr(whole, f"{n}_proj")(x[first]).unflatten(1, (-1, SIZES.d)).transpose(0, 1) for n in "qkv")
    dense = nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=True)[0]
    require(_close(selected, dense), f"{name}: with all blocks chosen it differs from dense attention.")
    other = _built(method, 1)
    other.load_state_dict(module.state_dict())
    require(torch.equal(other(x, voxels, sample), out), f"{name}: its weights do not bring it back.")


def _built(method: TrainedAttention, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return method.build(SIZES).eval()


def _check_rows(out: Tensor, name: str) -> None:
    require(bool(out.isfinite().all()), f"{name}: outputs are not finite.")
    require(bool((out != 0).any(-1).all()), f"{name}: a query keeps no key.")


def _check_future(before: Tensor, after: Tensor, name: str) -> None:
    require(_close(before, after), f"{name}: the future is heard.")


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)

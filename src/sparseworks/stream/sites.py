"""Find what can become sparse in any torch module: matrix views of its linear, convolution, embedding and expert weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Kind, Site

Parts = list[tuple[str, int]]
Split = Callable[[nn.Module, str, int, int], Parts]

_HEADS = ("lm_head", "embed_out", "output_projection")
_ROUTERS = ("router", "gate")


def sites(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Site]:
    """Every site of `model` in order of registration.

    Args:
        model: any module; Hugging Face classes are recognised by name, nothing is imported.
        include: shell-style patterns of site names; given, exactly the sites that match are returned, also those that
            are left out by default (embeddings, the output head, routers, depthwise convolutions).
        exclude: shell-style patterns of site names to leave out.

    Raises:
        ModelError: a pattern in `include` matches nothing.
    """
    found = list(_all_sites(model))
    for pattern in include:
        if not any(_any(site.name, [pattern]) for site, _ in found):
            raise ModelError(
                f"No site matches {pattern!r}. The model has {len(found)}: {_some(s.name for s, _ in found)}."
            )
    chosen = [s for s, usual in found if (_any(s.name, include) if include else usual)]
    return [s for s in chosen if not _any(s.name, exclude)]


def whole_site(model: nn.Module, path: str) -> Site:
    """The one site of a linear or convolution layer, with all its rows, however `sites` would cut it.

    Raises:
        ModelError: there is no such layer, or its parameter is shared with another module.
    """
    try:
        module, parameter = model.get_submodule(path), model.get_parameter(f"{path}.weight")
    except AttributeError:
        raise ModelError(f"Site {path!r} is not a whole layer of its own, whose units could be cut out.") from None
    described = _describe(module, "weight", parameter)
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]
    if described is None or described[0] in ("embedding", "expert") or len(names) > 1:
        raise ModelError(f"Site {path!r} is not a whole layer of its own, whose units could be cut out.")
    kind, shape, extra = described
    return Site(path, kind, names[0], shape, **extra)


def bias_of(model: nn.Module, site: Site) -> Tensor | None:
    """The part of the owning module's bias that belongs to the rows of `site`, a view; None where there is none."""
    name = bias_name(model, site)
    if name is None:
        return None
    bias = model.get_parameter(name).detach()
    bias = bias if site.expert is None else bias[site.expert]
    return bias if site.rows is None else bias[site.rows[0] : site.rows[1]]


def bias_name(model: nn.Module, site: Site) -> str | None:
    """Dotted name of the parameter that is added to what the rows of `site` compute; None where there is none."""
    module, leaf = model.get_submodule(site.module), site.parameter.rpartition(".")[2]
    names = ("bias",) if leaf == "weight" else (leaf.replace("weight", "bias"), f"{leaf}_bias")
    found = next((n for n in names if isinstance(getattr(module, n, None), nn.Parameter)), None)
    if found is None or site.kind == "embedding":
        return None
    return f"{site.module}.{found}" if site.module else found


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(name == p or fnmatchcase(name, p) for p in patterns)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "") if listed else "none"


def _all_sites(model: nn.Module) -> Iterator[tuple[Site, bool]]:
    """(site, whether it is included by default); a shared parameter is one site under its first name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    seen: set[int] = set()
    head = output_head(model)
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            described = _describe(module, leaf, parameter)
            if described is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{path}.{leaf}" if path else leaf
            tied = tuple(n for n in names[id(parameter)] if n != name)
            kind, shape, extra = described
            usual = kind != "embedding" and module is not head and _usual(model, path, module) and not _heads(tied)
            for site in _split(model, module, name, leaf, kind, shape, extra, parameter, tied):
                yield site, usual


def _describe(module: nn.Module, leaf: str, parameter: nn.Parameter) -> tuple[Kind, tuple[int, int], dict] | None:
    if isinstance(module, nn.MultiheadAttention) and leaf in ("in_proj_weight", *_SEPARATE):
        return "linear", _two(parameter.shape), {}
    if leaf == "weight" and parameter.dim() >= 2:
        if isinstance(module, nn.Linear):
            return "linear", _two(parameter.shape), {}
        if isinstance(module, nn.Embedding):
            return "embedding", _two(parameter.shape), {}
        if isinstance(module, nn.Conv1d | nn.Conv2d) and not isinstance(
            module, nn.ConvTranspose1d | nn.ConvTranspose2d
        ):
            out, each, *kernel = parameter.shape
            size = 1
            for k in kernel:
                size *= k
            kind: Kind = "conv1d" if isinstance(module, nn.Conv1d) else "conv2d"
            return kind, (out, each * size), {"kernel": tuple(kernel), "groups": module.groups}
        if type(module).__name__ == "Conv1D" and parameter.dim() == 2:
            return "hf_conv1d", (parameter.shape[1], parameter.shape[0]), {"transposed": True}
    if parameter.dim() == 3 and "bias" not in leaf and hasattr(module, "num_experts"):
        transposed = _stored_in_out(module, leaf, parameter)
        out, each = parameter.shape[1:] if not transposed else reversed(parameter.shape[1:])
        return "expert", (out, each), {"transposed": transposed}
    return None


def _stored_in_out(module: nn.Module, leaf: str, parameter: nn.Parameter) -> bool:
    """Stacks are stored (experts, out, in), or (experts, in, out) where the module says so or its hidden size shows it."""
    said, hidden = getattr(module, "is_transposed", None), getattr(module, "hidden_size", None)
    if said is not None or hidden is None:
        return bool(said)
    _, first, last = parameter.shape
    narrow = last if any(word in leaf for word in ("down", "w2", "output")) else first
    return first != last and narrow == hidden


def _two(shape: Sequence[int]) -> tuple[int, int]:
    return int(shape[0]), int(shape[1])


def _split(model, module, name, leaf, kind, shape, extra, parameter, tied) -> Iterator[Site]:
    base = name.removesuffix(".weight")
    if kind == "expert":
        for e in range(parameter.shape[0]):
            yield Site(f"{base}[{e}]", kind, name, shape, expert=e, tied=tied, **extra)
        return
    parts = _parts(model, module, base, leaf, shape, extra.get("groups", 1))
    start = 0
    for label, rows in parts:
        yield Site(f"{base}[{label}]", kind, name, (rows, shape[1]), rows=(start, start + rows), tied=tied, **extra)
        start += rows
    if not parts:
        yield Site(base, kind, name, shape, tied=tied, **extra)


def _parts(model: nn.Module, module: nn.Module, base: str, leaf: str, shape: tuple[int, int], groups: int) -> Parts:
    if groups > 1 and groups < shape[0]:  # each group has inputs of its own
        return [(f"g{g}", shape[0] // groups) for g in range(groups)]
    last = leaf if leaf in FUSED else base.rpartition(".")[2]
    if last not in FUSED:
        return []
    parts = FUSED[last](model, base, *shape)
    return parts if sum(n for _, n in parts) == shape[0] else []


def _thirds(model: nn.Module, base: str, rows: int, cols: int) -> Parts:
    del model, base, cols
    return [(part, rows // 3) for part in "qkv"]


def _attn(model: nn.Module, base: str, rows: int, cols: int) -> Parts:
    """GPT-2: queries, keys and values; only keys and values in cross attention."""
    del model, base
    return [(part, cols) for part in ("qkv" if rows == 3 * cols else "kv")]


def _grouped(model: nn.Module, base: str, rows: int, cols: int) -> Parts:
    """Queries, then fewer keys and values: head counts are read from the configuration."""
    owner = model.get_submodule(base.rpartition(".")[0])
    config = getattr(owner, "config", None) or getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return _thirds(model, base, rows, cols)
    kv = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(owner, "head_dim", None) or rows // (heads + 2 * kv)
    return [("q", heads * width), ("k", kv * width), ("v", kv * width)]


def _halves(model: nn.Module, base: str, rows: int, cols: int) -> Parts:
    del model, base, cols
    return [("gate", rows // 2), ("up", rows // 2)]


FUSED: dict[str, Split] = {
    "c_attn": _attn,
    "qkv": _thirds,
    "Wqkv": _thirds,
    "in_proj_weight": _thirds,
    "qkv_proj": _grouped,
    "gate_up_proj": _halves,
}
"""Last part of a parameter's name -> how its output rows are cut; a rule that does not add up leaves the site whole."""

_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into scores of words, where the model names one."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except (NotImplementedError, AttributeError):
        return None
    return head if isinstance(head, nn.Module) else None


def _heads(names: Sequence[str]) -> bool:
    return any(n.removesuffix(".weight").rpartition(".")[2] in _HEADS for n in names)


def _usual(model: nn.Module, path: str, module: nn.Module) -> bool:
    last = path.rpartition(".")[2]
    if last in _HEADS:
        return False
    if last in _ROUTERS and hasattr(model.get_submodule(path.rpartition(".")[0]), "experts"):
        return False
    depthwise = isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == module.in_channels > 1
    return not depthwise

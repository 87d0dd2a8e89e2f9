"""Units that live or die together across several sites: FFN neurons, attention heads, channels. Names in a table, no tracing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm

from sparseworks.core.errors import MissingStatError
from sparseworks.core.patterns import unstructured
from sparseworks.core.select import select
from sparseworks.core.site import Coupling, Member, Site
from sparseworks.core.support import Support
from sparseworks.stream.sites import sites as find_sites


@dataclass(frozen=True)
class Rule:
    """Sites with one parent whose output rows are the units, and the site that reads them as its columns."""

    kind: Literal["neuron", "head", "channel"]
    rows: tuple[str, ...]
    cols: str


RULES: tuple[Rule, ...] = (
    Rule("neuron", ("gate_proj", "up_proj"), "down_proj"),  # LLaMA, Mistral, Qwen, Gemma
    Rule("neuron", ("gate_up_proj[gate]", "gate_up_proj[up]"), "down_proj"),  # Phi-3
    Rule("neuron", ("w1", "w3"), "w2"),
    Rule("neuron", ("wi_0", "wi_1"), "wo"),  # T5 v1.1
    Rule("neuron", ("wi",), "wo"),  # T5
    Rule("neuron", ("fc1",), "fc2"),  # OPT, BART, ViT, CLIP
    Rule("neuron", ("c_fc",), "c_proj"),  # GPT-2
    Rule("neuron", ("up_proj",), "down_proj"),
    Rule("neuron", ("intermediate.dense",), "output.dense"),  # BERT
    Rule("neuron", ("lin1",), "lin2"),  # DistilBERT
    Rule("neuron", ("linear1",), "linear2"),  # torch.nn.TransformerEncoderLayer
    Rule("neuron", ("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, Bloom
    Rule("head", ("q_proj", "k_proj", "v_proj"), "o_proj"),
    Rule("head", ("q_proj", "k_proj", "v_proj"), "out_proj"),
    Rule("head", ("qkv_proj[q]", "qkv_proj[k]", "qkv_proj[v]"), "o_proj"),
    Rule("head", ("c_attn[q]", "c_attn[k]", "c_attn[v]"), "c_proj"),
    Rule("head", ("in_proj_weight[q]", "in_proj_weight[k]", "in_proj_weight[v]"), "out_proj"),
    Rule("head", ("self.query", "self.key", "self.value"), "output.dense"),
    Rule("head", ("q_lin", "k_lin", "v_lin"), "out_lin"),
    Rule("head", ("q", "k", "v"), "o"),
    Rule("channel", ("conv1",), "conv2"),  # residual blocks of torchvision and their kind
    Rule("channel", ("conv2",), "conv3"),
)
"""The first rule that fits the columns of a site wins."""

_WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_head")
_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_ELEMENTWISE = ("activation", "dropout", "pooling", "batchnorm")
_MIXING = (nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)
_ONE_CONVOLUTION = ("ResNetConvLayer", "RegNetConvLayer", "MobileNetV1ConvLayer", "MobileNetV2ConvLayer")


def couplings(model: nn.Module, sites: Sequence[Site] | None = None) -> list[Coupling]:
    """Coupled units of `model` whose members are all among `sites` (default: all that are pruned by default).

    - neurons of a feed-forward layer, or of one expert of a stack: a row of every matrix that makes them, a column of
      the one that reads them;
    - attention heads: rows of queries, keys and values, columns of the output; with grouped queries a unit is one
      key-value head and all the queries it serves;
    - channels (or neurons) between consecutive layers of an `nn.Sequential`, past normalisation by channel, activations
      and pooling; and between the convolutions of a residual block.

    Removing a unit leaves the model's other units as they are: its columns in the reader carry all it contributes.
    """
    by_name = {s.name: s for s in (find_sites(model) if sites is None else sites)}
    taken: set[str] = set()
    found = []
    for coupling in (
        *_by_rules(model, by_name),
        *_in_experts(model, by_name),
        *_in_sequentials(model, by_name),
    ):
        reader = coupling.members[-1].site
        if reader not in taken:
            taken.add(reader)
            found.append(coupling)
    order = {name: i for i, name in enumerate(by_name)}
    return sorted(found, key=lambda c: order[c.members[-1].site])


def select_units(
    listed: Iterable[Coupling], scores: Mapping[str, Float[Tensor, "rows cols"]], keep: float | int
) -> dict[str, Support]:
    """The `keep` best units of every coupling, by the sum of their members' scores: supports of all member sites.

    A site in two couplings (rows in one, columns in the other) keeps what both keep.

    Args:
        scores: importance of every entry of every member site.
        keep: share of the units of each coupling (float) or their number (int).

    Raises:
        MissingStatError: a member site has no scores.
        ShapeError: scores do not fit the coupling.
        BudgetError: `keep` is out of range.
    """
    masks: dict[str, Tensor] = {}
    pattern = unstructured("tensor")
    for c in listed:
        missing = [m.site for m in c.members if m.site not in scores]
        if missing:
            raise MissingStatError(f"Coupling {c.name!r} needs scores of {', '.join(map(repr, missing))}.")
        pooled = c.pool(dict(scores))
        kept = select(pooled, pattern, pattern.counts(pooled.shape, keep)).mask()
        spread = c.spread(kept, {m.site: tuple(scores[m.site].shape) for m in c.members})
        masks |= {site: masks[site] & mask if site in masks else mask for site, mask in spread.items()}
    return {site: Support.from_mask(mask) for site, mask in masks.items()}


# -- by name ----------------------------------------------------------------------------------------------------------


def _by_rules(model: nn.Module, by_name: Mapping[str, Site]) -> Iterator[Coupling]:
    for rule in RULES:
        for name, reader in by_name.items():
            if name != rule.cols and not name.endswith("." + rule.cols):
                continue
            prefix = name.removesuffix(rule.cols)
            makers = [by_name[prefix + r] for r in rule.rows if prefix + r in by_name]
            coupling = _coupled(model, rule, prefix, makers, reader) if len(makers) == len(rule.rows) else None
            if coupling:
                yield coupling


def _coupled(model: nn.Module, rule: Rule, prefix: str, makers: list[Site], reader: Site) -> Coupling | None:
    if rule.kind == "head":
        return _heads(model, prefix, makers, reader)
    label = prefix + ("neurons" if rule.kind == "neuron" else f"{rule.rows[0]}.channels")
    coupling = _pair(label, rule.kind, makers, reader)
    if coupling is None or rule.kind != "channel":
        return coupling
    number = rule.rows[0].removeprefix("conv")
    beside = dict(model.get_submodule(prefix.removesuffix(".")).named_children())
    norms = [f"{prefix}{word}{number}" for word in ("bn", "norm") if channels_of(beside.get(f"{word}{number}"))]
    return _with_norms(coupling, model, norms)


def _heads(model: nn.Module, prefix: str, makers: list[Site], reader: Site) -> Coupling | None:
    query, key, value = makers
    width = _head_width(model, makers[0], query.shape[0])
    if not width or query.shape[0] % width or key.shape[0] % width or value.shape[0] != key.shape[0]:
        return None
    units = key.shape[0] // width
    if query.shape[0] % units or reader.shape[1] != query.shape[0]:
        return None
    per = query.shape[0] // units
    members = (
        Member(query.name, "rows", per),
        Member(key.name, "rows", width),
        Member(value.name, "rows", width),
        Member(reader.name, "cols", per),
    )
    return Coupling(f"{prefix}heads", "head", units, members)


def _head_width(model: nn.Module, query: Site, rows: int) -> int | None:
    """Width of a head: what the nearest module around the queries says, then what the configuration says."""
    path = query.module
    while True:
        owner = model.get_submodule(path)
        for around in (owner, getattr(owner, "config", None)):
            width = next((int(w) for w in (getattr(around, a, None) for a in _WIDTHS) if isinstance(w, int)), None)
            count = next((int(n) for n in (getattr(around, a, None) for a in _COUNTS) if isinstance(n, int)), None)
            if width or count:
                return width or rows // (count or 1)
        if not path:
            return None
        path = path.rpartition(".")[0]


def _pair(label: str, kind: Literal["neuron", "channel"], makers: list[Site], reader: Site) -> Coupling | None:
    """Rows of every maker are the units; the reader has one column, or a run of columns, for each at every position."""
    units = makers[0].shape[0]
    positions = 1
    for k in reader.kernel:
        positions *= k
    runs = reader.shape[1] // positions
    if any(m.shape[0] != units or (m.rows and m.groups > 1) for m in makers) or reader.groups > 1 or runs % units:
        return None
    if runs != units and (reader.kernel or not makers[0].kernel):
        return None
    members = (*(Member(m.name, "rows") for m in makers), Member(reader.name, "cols", runs // units, positions))
    return Coupling(label, kind, units, members)


def _with_norms(coupling: Coupling, model: nn.Module, norms: Sequence[str]) -> Coupling:
    widths = [(path, channels_of(model.get_submodule(path)) // coupling.units) for path in norms]
    return replace(coupling, norms=tuple(Member(path, "rows", width) for path, width in widths))


def channels_of(module: nn.Module | None) -> int:
    """Channels of a module that normalises or scales by channel; 0 for others, and for those without vectors."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters if module.num_parameters > 1 else 0
    if isinstance(module, batchnorm._BatchNorm | instancenorm._InstanceNorm):
        return module.num_features
    return 0


def _in_experts(model: nn.Module, by_name: Mapping[str, Site]) -> Iterator[Coupling]:
    """Neurons of every expert of a stack; gate and up lie in one matrix, one after the other or row by row in turns."""
    for reader in (s for s in by_name.values() if s.kind == "expert" and s.parameter.endswith("down_proj")):
        units, parent = reader.shape[1], reader.parameter.removesuffix("down_proj")
        turns = not getattr(model.get_submodule(reader.module), "is_concatenated", True)
        for last in ("gate_up_proj", "up_proj"):
            maker = by_name.get(f"{parent}{last}[{reader.expert}]")
            if maker is None or maker.shape[0] % units:
                continue
            runs = maker.shape[0] // units
            rows = Member(maker.name, "rows", *((runs, 1) if turns else (1, runs)))
            label = f"{parent.rstrip('.')}[{reader.expert}].neurons"
            yield Coupling(label, "neuron", units, (rows, Member(reader.name, "cols")))


# -- by order ---------------------------------------------------------------------------------------------------------


def _in_sequentials(model: nn.Module, by_name: Mapping[str, Site]) -> Iterator[Coupling]:
    whole = {s.module: s for s in by_name.values() if s.rows is None and s.expert is None}
    for run in _runs("", model):
        makers: list[Site] = []
        norms: list[str] = []
        for path, module in run:
            site = whole.get(path)
            if site is None:
                makers = makers if elementwise(module) else []
                norms = [*norms, path] if channels_of(module) else norms
            elif makers and _depthwise(module):
                makers.append(site)
            else:
                label, kind = (
                    (f"{makers[0].module}.{_kind(makers[0])}s", _kind(makers[0])) if makers else ("", "neuron")
                )
                coupling = _pair(label, kind, makers, site) if makers else None
                if coupling:
                    yield _with_norms(coupling, model, norms)
                makers, norms = [site], []


def _kind(site: Site) -> Literal["neuron", "channel"]:
    return "channel" if site.kernel else "neuron"


def _runs(path: str, module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Leaves of every outermost sequential, in the order in which they run."""
    if _plain(module):
        flat = list(_flatten(path, module))
        yield flat
        for name, inner in flat:
            if any(True for _ in inner.children()):
                yield from _runs_below(name, inner)
    else:
        yield from _runs_below(path, module)


def _runs_below(path: str, module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    for name, child in module.named_children():
        yield from _runs(f"{path}.{name}" if path else name, child)


def _flatten(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if _plain(child):
            yield from _flatten(inner, child)
        else:
            yield inner, child


def _plain(module: nn.Module) -> bool:
    sequential = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return sequential or type(module).__name__ in _ONE_CONVOLUTION


def elementwise(module: nn.Module) -> bool:
    """Whether a channel of the output depends on the same channel of the input alone."""
    if isinstance(module, nn.Identity | nn.Flatten) or _depthwise(module):
        return True
    package, _, last = type(module).__module__.rpartition(".")
    known = (package == "torch.nn.modules" and last in _ELEMENTWISE) or type(module).__module__.endswith(".activations")
    return known and not isinstance(module, _MIXING)


def _depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels
        and module.groups > 1
    )

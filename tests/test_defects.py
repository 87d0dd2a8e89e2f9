"""Fifteen defects found by reading other sparsity libraries, and one of our own, each as a test that ours does not have it."""

from __future__ import annotations

import ast
import builtins
import dis
import gc
import inspect
import tomllib
import weakref
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks import testing
from sparseworks.core.allocator import ALLOCATORS
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import PatternError
from sparseworks.core.pages import method_table
from sparseworks.core.patterns import EXAMPLES, HELP, parse
from sparseworks.core.score import SCORES
from sparseworks.core.solver import REPAIRS, SOLVERS
from sparseworks.core.stats import STATS
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS
from sparseworks.weights import prune

ROOT = Path(__file__).parents[1]
SRC = Path(sw.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))}


class Toy(nn.Module):
    """Two repeated blocks with a loss of their own, as models are streamed."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


DATA = [torch.randn(6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def loss(model, x):
    return model(x).square().mean()


# 1. An allocator returned a table that its caller no longer understood; only a private function was tested.
@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_01_every_allocator_runs_end_to_end(name):
    model = Toy()
    try:
        pruned = prune(model, sw.method("wanda", density=0.75, allocate=name), DATA, progress=False, loss=loss)
    except Exception as error:
        raise AssertionError(f"allocator {name} does not run end to end: {error}") from error
    total = sum(s.size for s in pruned.supports.values())
    assert abs(sum(s.count for s in pruned.supports.values()) - 0.75 * total) <= len(pruned.supports)


# 2. `functools.partial(jax.jit, ...)` as a bare expression: it decorated nothing.
def test_02_useless_expressions_are_linted():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "B" in config["select"] and not {"B", "B018"} & set(config.get("ignore", []))  # B018: useless expression
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                assert not called.endswith(("partial", "torch.compile", "lru_cache", "wraps")), (
                    f"{path.name}:{node.lineno}"
                )


# 3. A mutable default filled in one instance leaked into the next, and kept old models alive.
def test_03_no_mutable_defaults():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d)):
                    literal = isinstance(default, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
                    made = isinstance(default, ast.Call) and ast.unparse(default.func) in (
                        "list",
                        "dict",
                        "set",
                        "Stats",
                    )
                    assert not literal and not made, f"{path.name}:{default.lineno} has a mutable default"
    for _, registry in NOUNS.values():
        for kind in registry:
            hash(testing.example(kind))  # frozen all the way down


def test_03_pruning_keeps_no_model_alive():
    model = Toy()
    gone = weakref.ref(model)
    prune(model, sw.method("magnitude"), progress=False)
    prune(Toy(), sw.method("magnitude"), progress=False)
    del model
    gc.collect()
    assert gone() is None


# 4. `kthvalue`, then `>`: at least one entry pruned at ratio 0, and everything when weights tie.
@pytest.mark.parametrize("text", EXAMPLES)
def test_04_counts_are_exact_when_everything_ties(text):
    pattern = parse(text)
    for density in (0.0, 0.25, 1.0):
        counts = pattern.counts((16, 16), density)
        kept = pattern.select(torch.ones(16, 16), counts).count
        expected = pattern.fixed_density if pattern.fixed_density is not None else density
        assert kept == expected * 256


# 5. `tmp <= thresh` after a sort: ties exceeded the budget; sparsity 1.0 indexed past the end.
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "wanda_ls"])
def test_05_extremes_and_ties_are_legal_in_whole_methods(name, density):
    weight, inputs = torch.ones(8, 16), torch.ones(32, 16)
    new, support = sw.prune_matrix(weight, sw.method(name, density=density), inputs=inputs)
    assert support.count == round(density * 128) and int((new != 0).sum()) <= support.count


# 6. An untested extension called a function with the arguments of an older version.
def test_06_every_registered_thing_has_the_signature_of_its_noun():
    for noun, (base, registry) in NOUNS.items():
        called = "__call__" if "__call__" in vars(base) else None
        for kind in registry:
            assert issubclass(kind, base), f"{noun} {kind}"
            for name in filter(None, (called, "columns", "bias", "shares", "total", "counts", "value")):
                if hasattr(base, name):
                    ours, theirs = (list(inspect.signature(getattr(k, name)).parameters) for k in (kind, base))
                    assert ours[: len(theirs)] == theirs, (
                        f"{noun} {kind.__name__}.{name}({ours}), the noun has {theirs}"
                    )


def test_06_extensions_live_under_the_same_suites():
    suite = ast.parse((ROOT / "tests" / "test_conformance.py").read_text())
    used = {n.id for n in ast.walk(suite) if isinstance(n, ast.Name)}
    assert {"SCORES", "STATS", "ALLOCATORS", "REPAIRS", "SOLVERS", "FORMATS", "KERNELS"} <= used


# 7. Masks were unpacked where they should be packed, and a debug print was left in the step.
def test_07_packed_and_unpacked_states_are_equal_after_every_change():
    support = Support.from_mask(torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.5)
    ragged = support.as_indices()
    for step in range(6):
        other = Support.from_mask(torch.rand(7, 9, generator=torch.Generator().manual_seed(step + 1)) < 0.5)
        support, ragged = (support - other) | (other & ~support), (ragged - other) | (other & ~ragged)
        ragged = ragged.as_indices()
        assert support == ragged and torch.equal(support.mask(), ragged.mask()) and support.hash() == ragged.hash()


COMMANDS = (SRC / "testing" / "fuzz.py", SRC / "testing" / "device.py")
"""Of their own, `python -m`."""


def test_07_nothing_is_printed_but_by_the_command_line_and_progress():
    allowed = {"cli", "jobs", "stream", "weights"}
    for path, tree in TREES.items():
        if path.relative_to(SRC).parts[0] in allowed or path in COMMANDS:
            continue
        calls = [
            n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("print", "breakpoint")
        ]
        assert not calls, f"{path}:{calls[0].lineno}"


# 8. The readme showed a field that did not exist and a pattern text that the parser refused.
def test_08_documentation_is_executed():
    assert (ROOT / "tests" / "docs" / "test_snippets.py").exists()
    for text in ("2:4", "16x2:4", "2:4@out", "vnm:64:2:8", "block:4x1", "block:16x16/row", "fan-in", "rows", "columns"):
        assert str(parse(text)) == text
    for word in HELP.replace("(", "").replace(")", "").split(", "):
        plain = word.split()[0]
        if plain.islower() and ":" not in plain:
            parse(plain)


# 9. `'magnitude' in name` came before `name == 'avg_magnitude'`: the second was unreachable.
def test_09_no_ladders_of_strings():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.If):
                length, at = 0, node
                while at is not None and _asks_for_a_name(at.test):
                    length += 1
                    at = at.orelse[0] if len(at.orelse) == 1 and isinstance(at.orelse[0], ast.If) else None
                assert length < 3, f"{path.name}:{node.lineno} decides by a ladder of names; use a registry or a table"


def test_09_names_that_contain_each_other_are_different_things():
    for registry in (SCORES, ALLOCATORS, REPAIRS, SOLVERS, STATS):
        assert len({id(kind) for kind in registry}) == len(registry)
        assert all(registry.get(name).registered_name == name for name in registry.names())


def _asks_for_a_name(test: ast.expr) -> bool:
    if not isinstance(test, ast.Compare):
        return False
    strings = [c for c in (test.left, *test.comparators) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
    return bool(strings) and isinstance(test.ops[0], ast.Eq | ast.In)


# 10. A hand-written table of sizes was wrong for models without grouped queries.
def test_10_costs_and_shares_derive_from_shapes():
    model = Toy()
    sites = {s.name: s for s in sw.sites(model)}
    for site in sites.values():
        assert site.size == site.tensor(model).numel() == site.shape[0] * site.shape[1]
    pruned = prune(model, sw.method("magnitude", density=0.5), progress=False)
    assert {name: s.shape for name, s in pruned.supports.items()} == {name: s.shape for name, s in sites.items()}
    for name in FORMATS.names():
        sizes = [FORMATS.get(name).nbytes(Support.full(shape)) for shape in ((64, 64), (128, 64), (64, 128))]
        assert sizes[0] < sizes[1] and sizes[0] < sizes[2]


# 11. Live rows were found by `weight.sum(dim=1) != 0`: rows that cancel were dropped.
def test_11_rows_that_cancel_and_kept_zeros_are_not_dropped():
    weight = torch.zeros(16, 16)
    weight[9, 0], weight[9, 1] = 1.0, -1.0  # cancels
    support = Support.from_mask(torch.ones(16, 16).tril().bool())  # keeps many entries that are zero
    for name in FORMATS.names():
        format = FORMATS.get(name)
        if format.refuses(support) is None:
            unpacked, again = format.unpack(format.pack(weight, support))
            assert again == support, name
            assert torch.equal(unpacked, weight), name


def test_11_nothing_compares_a_weight_with_zero_to_find_the_support():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                text = ast.unparse(node)
                zero = any(isinstance(c, ast.Constant) and c.value == 0 for c in node.comparators)
                named = ast.unparse(node.left).rsplit(".", 1)[-1] in ("weight", "w", "data", "values")
                assert not (zero and named), f"{path}:{node.lineno} reads a support from values: {text}"


# 12. FP8 was ranked as bytes when packed: the order of negative numbers was inverted.
def test_12_a_format_packs_the_given_support_and_never_chooses():
    support = parse("2:4").select(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    worst = torch.where(support.mask(), -1e-6, 100.0)  # every entry outside looks more important than every one inside
    for name in FORMATS.names():
        format = FORMATS.get(name)
        if format.refuses(support) is None:
            unpacked, again = format.unpack(format.pack(worst, support))
            assert again == support and float(unpacked.max()) <= 0, name


# 13. A constructor overwrote its own argument; the branch below it was dead.
def test_13_no_argument_is_overwritten_before_it_is_read():
    for path in (SRC / "core").glob("*.py"):
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
                first: dict[str, bool] = {}
                for statement in node.body:
                    _first_uses(statement, names, first)
                assert not [n for n, stored in first.items() if stored], f"{path.name}:{node.lineno} {node.name}"


def _first_uses(statement: ast.stmt, names: set[str], first: dict[str, bool]) -> None:
    """For every name: whether its first use in order of evaluation is a store."""
    uses = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id in names]
    for use in sorted(uses, key=lambda n: isinstance(n.ctx, ast.Store)):  # a right-hand side is read first
        first.setdefault(use.id, isinstance(use.ctx, ast.Store))


# 14. An error text lacked its `f`: the user read `{name}`.
def test_14_error_messages_have_no_holes():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for text in _plain_strings(node.exc):
                    holes = [h for h in ("{self", "{name", "{shape", "{tuple", "{type", "{len") if h in text]
                    assert not holes, f"{path}:{node.lineno} shows {text!r}"


def _plain_strings(call: ast.Call) -> list[str]:
    inside = {id(part) for n in ast.walk(call) if isinstance(n, ast.JoinedStr) for part in n.values}
    return [
        n.value
        for n in ast.walk(call)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside
    ]


def test_14_messages_carry_the_numbers():
    with pytest.raises(PatternError, match=r"6 columns cannot be cut into tiles of 4 \(shape \(4, 6\)\)"):
        sw.select(torch.zeros(4, 6), sw.Pattern.parse("2:4"))


# 15. A published figure did not say that only half of the prompt had been sparse.
def test_15_a_result_states_what_was_sparse():
    model = Toy()
    pruned = prune(model, sw.method("magnitude", density=0.5), progress=False, skip=["*.0.2"])
    assert set(pruned.supports) == {s.name for s in sw.sites(model) if not s.name.endswith("0.2")}
    texts = [row["composition"] for row in method_table() if row["family"] == "weights"]
    assert all(("budget=" in text and "pattern=" in text) or "form=" in text for text in texts)


# 16. A merge dropped an import: linters cannot look for unknown names here, since shapes in annotations are strings of such.
def test_16_every_global_name_is_defined():
    for path in TREES:
        code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        known = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_NAME", "IMPORT_NAME")}
        known |= {i.argval for c in _codes(code) for i in dis.get_instructions(c) if i.opname == "STORE_GLOBAL"}
        known |= set(dir(builtins)) | {"__file__", "__path__", "__annotations__"}
        used = {i.argval for c in _codes(code) for i in dis.get_instructions(c) if i.opname == "LOAD_GLOBAL"}
        assert used <= known, f"{path} uses {sorted(used - known)} without a definition"


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _codes(part)


def test_registered_dataclasses_are_frozen_and_public_modules_import():
    for _, registry in NOUNS.values():
        for kind in registry:
            assert is_dataclass(kind) and kind.__dataclass_params__.frozen, kind
            assert all(not isinstance(f.default, list | dict | set) for f in fields(kind) if f.default is not MISSING)
    for path in TREES:
        name = ".".join(("sparseworks", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
        needs = {"_flower": "flwr"}.get(path.stem)  # what an extra alone brings
        if path.name != "__main__.py" and (needs is None or find_spec(needs)):
            import_module(name)

"""The package as a whole: light to import, arrows that point one way, public names that exist and are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sparseworks as sw

SRC = Path(sw.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
HEAVY = {"transformers", "matplotlib", "scipy", "sklearn", "pandas", "pytest", "hypothesis", "datasets"}

# Part -> the parts it may import. A part that is not listed is not part of the design: place it first.
SHARED = {"core", "scores", "allocate", "repair", "solve", "stream", "exec"}
ARROWS: dict[str, set[str]] = {
    "core": set(),
    "solve": {"core", "exec"},
    "scores": {"core", "solve"},
    "allocate": {"core", "scores"},
    "repair": {"core", "solve"},
    "stream": {"core"},
    "exec": {"core", "stream"},
    "models": {"core"},
    "io": SHARED | {"models"},
    "report": {"core", "exec"},
    "evaluate": SHARED | {"io", "models"},
    "testing": SHARED | {"weights", "activations", "attention", "codes", "retrieval"},
    "jobs": SHARED | {"io", "report", "evaluate", "weights", "activations", "attention"},
    "cli": SHARED | {"io", "report", "evaluate", "weights", "activations", "attention", "codes", "retrieval", "jobs"},
}
FAMILIES = {"weights", "activations", "attention", "experts", "codes", "retrieval", "tuning", "bayes", "inverse"}
ARROWS |= {family: SHARED | {"io"} for family in FAMILIES}


def part(path: Path) -> str:
    inside = path.relative_to(SRC).parts
    return inside[0] if len(inside) > 1 else ""


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, as dotted names below `sparseworks`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return {name.removeprefix("sparseworks.") for name in found if name.startswith("sparseworks.")}


@pytest.mark.parametrize(
    "module", ["sparseworks", "sparseworks.core.method", "sparseworks.weights", "sparseworks.exec"]
)
def test_importing_is_light(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    assert ran.stdout.split() == []


def test_importing_the_package_alone_does_not_even_import_torch():
    code = "import sys, sparseworks; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "False\n"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_arrows_point_one_way(path):
    own = part(path)
    if not own:
        return
    assert own in ARROWS, f"{own!r} has no place in the layering"
    for name in imports(path):
        target = name.split(".")[0]
        if target in (own, "__version__"):
            continue
        assert target in ARROWS[own], f"{own} must not import {target} ({path.name} imports {name})"


def test_the_arrows_have_no_cycle_and_families_do_not_know_each_other():
    done: set[str] = set()
    while len(done) < len(ARROWS):
        ready = {p for p, needs in ARROWS.items() if p not in done and needs <= done}
        assert ready, f"a cycle among {sorted(set(ARROWS) - done)}"
        done |= ready
    assert all(not ARROWS[family] & FAMILIES for family in FAMILIES)


def test_core_does_no_input_or_output():
    for path in (SRC / "core").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        modules |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not modules & {"os", "io", "pathlib", "shutil", "tempfile", "safetensors", "transformers"}, path.name
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not calls & {"open", "print"}, path.name


# -- public names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sw.__all__)
def test_public_names_resolve(name):
    assert getattr(sw, name) is not None
    assert name in dir(sw)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = sw.prunes  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_what_a_module_exports_exists(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__" for n in tree.body):
        return
    module = importlib.import_module(
        ".".join(("sparseworks", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
    )
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), f"{module.__name__}.{name}"


def public_functions(tree: ast.Module):
    """(qualified name, function) for module functions and methods of public classes, dunder methods left out."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (
                (f"{node.name}.{f.name}", f)
                for f in node.body
                if isinstance(f, ast.FunctionDef) and (not f.name.startswith("_") or f.name == "__call__")
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_public_functions_have_docstrings_and_annotations(path):
    for name, node in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        assert ast.get_docstring(node), f"{name} has no docstring"
        setter = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
        arguments = [
            a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")
        ]
        assert all(a.annotation for a in arguments), f"{name} has arguments without annotation"
        assert node.returns or setter, f"{name} has no return annotation"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_modules_and_public_classes_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_callables_of_the_front_door_can_be_inspected():
    for name in sw.__all__:
        value = getattr(sw, name)
        if callable(value):
            assert inspect.getdoc(value), name
            inspect.signature(value)

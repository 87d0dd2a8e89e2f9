"""Replace the linear layers of a model by fitted operators, block after block on current inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.operator import LinearOperator, Stored
from sparseworks.core.recipe import Recipe
from sparseworks.core.site import Site
from sparseworks.core.stats import Gram, Stat, Stats
from sparseworks.stream import Capture, Memory, blocks
from sparseworks.stream import sites as find_sites
from sparseworks.stream.modes import evaluating
from sparseworks.weights.checkpoint import Workdir, fingerprint
from sparseworks.weights.decide import Decision, Job
from sparseworks.weights.factors import kept
from sparseworks.weights.matrix import check_weight, relative_error
from sparseworks.weights.prune import reseeded
from sparseworks.weights.show import Shown
from sparseworks.weights.streaming import Run, Unit, about, placed

_KINDS = ("linear", "hf_conv1d")


@dataclass(frozen=True)
class FactorRow:
    """What became of one layer.

    Attributes:
        form: name of the form.
        stored: numbers and bits of the operator.
        share: stored words (16-bit numbers) over those of the dense matrix.
        relative_error: E|(V - W) x|^2 / E|W x|^2, see `sparseworks.weights.matrix.relative_error`.
    """

    name: str
    shape: tuple[int, int]
    form: str
    stored: Stored
    share: float
    relative_error: float


@dataclass(frozen=True)
class Factorised:
    """Outcome of `factorise`: operators and rows by layer, in order of the model, and what memory was predicted."""

    operators: dict[str, LinearOperator]
    rows: list[FactorRow]
    memory: Memory

    @property
    def share(self) -> float:
        """Stored words over those of the dense matrices, all layers together; factors that layers share counted once."""
        once = stored_once(self.operators.values())
        return once.words() / sum(r.shape[0] * r.shape[1] for r in self.rows)


def stored_once(operators: Iterable[LinearOperator]) -> Stored:
    """What the operators need together, a factor that several of them hold counted once."""
    modules = {id(m): m for operator in operators for m in operator.modules() if isinstance(m, LinearOperator)}
    leaves = [m for m in modules.values() if not any(isinstance(c, LinearOperator) for c in list(m.modules())[1:])]
    return sum((leaf.stored for leaf in leaves), Stored())


def factorise(
    model: nn.Module,
    method: Method | Recipe | str,
    examples: Iterable[Any] | None = None,
    *,
    sites: Sequence[Site] | None = None,
    skip: Sequence[str] = (),
    workdir: Path | str | None = None,
    seed: int = 0,
    progress: bool = True,
    memory_limit: int | None = None,
    device: torch.device | str | None = None,
    say: Callable[[str], None] | None = None,
) -> Factorised:
    """Write the linear layers of `model` as factors, in place.

    Words of all layers are fixed first; then block after block the statistics of its layers are gathered on the current
    hidden states, every layer is fitted and replaced, and the outputs of the *factorised* block go on. Layers outside
    repeated blocks see whole forward passes. `sparseworks.io.save` and `sparseworks.load` keep the result to the bit.

    Args:
        model: any torch module.
        method: a method with a form, its name, or a recipe of such methods.
        examples: calibration batches (dicts of keyword arguments, tuples or tensors); not needed by data-free forms.
        sites: layers to consider; default: all linear layers that `sparseworks.sites(model)` lists.
        skip: shell-style patterns of names that stay dense.
        workdir: folder for the state of the run. The same call on the same dense model goes on where it was cut off, and
            ends with the same factors.
        seed: added to the recipe's seed, and that to the seed of every random part.
        progress, memory_limit, device, say: as in `sparseworks.prune`.

    Raises:
        ModelError: no layer is factorised, a method has no form, or a site is not the whole weight of a linear layer.
        CalibrationError: data are missing or empty.
        BudgetError: the budget is too small for a layer, or the method allocates by what only pruning shows.
        ShapeError: the factors do not divide a layer; nothing was changed, nor was it by the errors above.
        NonFiniteError: weights or activations hold NaN or infinity.
        CheckpointError: `workdir` belongs to another run or cannot be written.
    """
    recipe = Recipe.of(method, skip=skip)
    listed = [s for s in find_sites(model) if _refusal(model, s) is None] if sites is None else list(sites)
    groups = [(reseeded(m, seed + recipe.seed), members) for m, members in recipe.assign(listed)]
    job = Job(model, groups, blocks(model, listed), list(examples) if examples is not None else [])
    _check(job)
    shown = Shown(progress, say)
    work = (
        Workdir.open(workdir, fingerprint(model, recipe.to_yaml(), seed, job.batches, job.sites)) if workdir else None
    )
    job.folder = work.folder if work else None
    with evaluating(model):
        return Factorise(job, work, torch.device(device) if device else None, memory_limit, shown).factorised()


@dataclass
class Factorise(Run):
    """The streaming run of `prune`, in which layers get operators instead of zeros."""

    operators: dict[str, LinearOperator] = field(default_factory=dict)
    found: list[FactorRow] = field(default_factory=list)

    doing: ClassVar[str] = "factorise"

    def factorised(self) -> Factorised:
        """Decide, then unit after unit."""
        memory = self.go().memory
        order = {site.name: i for i, site in enumerate(self.order)}
        rows = sorted(self.found, key=lambda row: order[row.name])
        return Factorised({row.name: self.operators[row.name] for row in rows}, rows, memory)

    def _decide(self, needs: Mapping[str, Any]) -> tuple[Decision, dict[str, Stats]]:
        """As for pruning; then every layer is checked before the first is changed."""
        decided = super()._decide(needs)
        for site in self.job.sites:
            method, words = self.methods[site.name], decided[0].counts.get(site.name, site.size)
            assert method.form is not None
            with about(site):
                method.form.check(site.shape, method, words)
        return decided

    def _solve(self, unit: Unit, taken: Capture | None) -> None:
        """Fit the layers of a unit, those that share factors together, and put the operators in their places."""
        if not unit.sites:
            return
        streamed = self._gather(unit, taken)
        stats = {s.name: Stats([*streamed.get(s.name, ()), *self.evidence[s.name]], site=s.name) for s in unit.sites}
        with placed(unit.block.module(self.job.model) if unit.block else None, self.device):
            for group in self._groups(unit.sites, stats):
                self._fit(group, stats[group[0].name])
                self.tick(len(group), group[-1].name)
        if self.work:
            names = {s.name for s in unit.sites}
            tensors, facts = kept.flat({name: o for name, o in self.operators.items() if name in names})
            rows = [asdict(row) for row in self.found if row.name in names]
            self.work.save(_file(unit), tensors, facts | {"rows": rows})

    def _restore(self, unit: Unit, *, put: bool = True) -> bool:
        """Whether the unit was finished by an earlier run; with `put` its operators go into the model."""
        found = self.work.load(_file(unit)) if self.work else None
        if found is None or not put:
            return found is not None
        tensors, facts = found
        operators = kept.nested(tensors, facts)
        for site in unit.sites:
            place(self.job.model, site.module, operators[site.name], self.job.model.get_submodule(site.module))
        self.operators |= operators
        self.found += [
            FactorRow(**{**row, "shape": tuple(row["shape"]), "stored": Stored(**row["stored"])})
            for row in facts["rows"]
        ]
        self.tick(len(unit.sites), unit.name)
        return True

    def _groups(self, sites: Sequence[Site], stats: Mapping[str, Stats]) -> list[list[Site]]:
        """Each site alone, but sites of a method that shares factors with all that read the same inputs."""
        groups: dict[Any, list[Site]] = {}
        for site in sites:
            method = self.methods[site.name]
            assert method.form is not None
            key: Any = site.name
            if method.form.together and Gram in stats[site.name]:
                key = method, id(stats[site.name][Gram].total)  # what is gathered once is the same tensor for all
            groups.setdefault(key, []).append(site)
        return list(groups.values())

    def _fit(self, sites: Sequence[Site], stats: Stats) -> None:
        model, method = self.job.model, self.methods[sites[0].name]
        assert method.form is not None
        weights = [site.read(model) for site in sites]
        words = sum(self.decision.counts.get(site.name, site.size) for site in sites)
        with about(sites[0]):
            operators = fitted(weights, stats, method, words)
        for site, weight, operator in zip(sites, weights, operators, strict=True):
            place(model, site.module, operator, model.get_submodule(site.module))
            old = weight.double() if weight.dtype == torch.float64 else weight.float()
            error = relative_error(old, operator.dense().detach().to(old), stats)
            form, stored = method.form.registered_name, operator.stored
            self.operators[site.name] = operator
            self.found.append(FactorRow(site.name, site.shape, form, stored, stored.words() / site.size, error))


def factorise_matrix(
    weight: Tensor, method: Method | str, inputs: Tensor | None = None, *, stats: Iterable[Stat] = ()
) -> LinearOperator:
    """The operator of one weight (out x in): what `factorise` does with each layer, for weights that are not in a model.

    Args:
        inputs: calibration inputs, tokens x in, for forms that look at them.
        stats: statistics gathered elsewhere.

    Raises:
        ModelError: the method has no form.
        CalibrationError: the form needs `inputs`.
        BudgetError, ShapeError: the budget is too small, or the factors do not divide the matrix.
    """
    method = Method.of(method)
    check_weight(weight, "weight")
    known = Stats(stats)
    gathered = Stats.collecting([k for k in method.needs if k not in known], (weight.shape[0], weight.shape[1]))
    if len(gathered) and inputs is None:
        raise CalibrationError(f"Method {method.name!r} looks at the inputs: give them with `inputs=`.")
    if inputs is not None:
        gathered.feed("input", inputs)
    return fitted([weight], Stats([*known, *gathered]), method, method.budget.total({"weight": weight.numel()}))[0]


def fitted(weights: Sequence[Tensor], stats: Stats, method: Method, words: int) -> list[LinearOperator]:
    """The fits in float32 (float64 stays), stored in the type of the weights; more than one only of a form that shares.

    Raises:
        ModelError: the method has no form.
    """
    if method.form is None:
        raise ModelError(f"Method {method.name!r} has no form: it keeps matrices and belongs to `sparseworks.prune`.")
    wide = [w.detach() if w.dtype == torch.float64 else w.detach().float() for w in weights]
    if len(wide) == 1:
        return [method.form.fit(wide[0], stats, method, words).to(weights[0].dtype)]
    return [o.to(w.dtype) for o, w in zip(method.form.fit_together(wide, stats, method, words), weights, strict=True)]


def place(model: nn.Module, path: str, operator: LinearOperator, layer: nn.Module) -> None:
    """Put `operator` where `layer` is, with its bias, its mode and whether it is trained."""
    operator.bias = getattr(layer, "bias", None)
    operator.to(layer.weight.device)  # type: ignore[arg-type]
    for parameter in operator.parameters():
        if parameter is not operator.bias:
            parameter.requires_grad_(layer.weight.requires_grad)  # type: ignore[arg-type]
    operator.train(layer.training)
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, operator)


def _file(unit: Unit) -> str:
    return f"factors_{unit.index:04d}"


def _refusal(model: nn.Module, site: Site) -> str | None:
    """Why the layer of a site cannot be replaced, or None."""
    if site.kind not in _KINDS:
        return f"is a weight of kind {site.kind}"
    if site.rows is not None:
        return "is a slice of a fused weight"
    if site.tied:
        return f"shares its weight with {site.tied[0]!r}"
    owner = model.get_submodule(site.module.rpartition(".")[0])
    if (
        not site.module
        or isinstance(owner, nn.MultiheadAttention)
        or isinstance(model.get_submodule(site.module), nn.MultiheadAttention)
    ):
        return "is used without its layer being called"
    return None


def _check(job: Job) -> None:
    """Refuse what cannot work before anything is changed."""
    if not job.groups:
        raise ModelError("Nothing to factorise: the model has no linear layers, or all of them are skipped.")
    for method, sites in job.groups:
        if method.form is None:
            raise ModelError(
                f"Method {method.name!r} has no form: it keeps matrices and belongs to `sparseworks.prune`."
            )
        if (
            method.allocate.needs
            or method.allocate.uses_scores
            or method.allocate.uses_error
            or method.allocate.uses_trials
        ):
            raise BudgetError(
                f"Method {method.name!r} allocates by what pruning shows; a form takes one that looks at shapes."
            )
        if method.budget.needs_scores:
            raise BudgetError(f"Method {method.name!r}: {method.budget} counts by scores, a form counts numbers.")
        if method.needs and not job.batches:
            kind = min(method.needs, key=lambda k: k.__name__)
            raise CalibrationError(f"Method {method.name!r} gathers {kind.__name__}: give calibration `examples`.")
        for site in sites:
            reason = _refusal(job.model, site)
            if reason is not None:
                raise ModelError(
                    f"Site {site.name!r} {reason}: it cannot be written as factors; leave it out with `skip`."
                )
            with job.reading(site) as weight:
                check_weight(weight, f"Site {site.name!r}")

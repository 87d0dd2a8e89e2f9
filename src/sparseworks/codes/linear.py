"""Sparse linear regression with scikit-learn's interface; needs the extra `estimators`. Arrays give arrays, tensors tensors."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from sparseworks.codes.method import CodeMethod  # noqa: F401  files penalties and datafits under the nouns of recipes
from sparseworks.core.config import from_config
from sparseworks.core.errors import DtypeError, NonFiniteError, RecipeError, ShapeError
from sparseworks.solve.coder import Coder
from sparseworks.solve.coders import CoordinateDescent, ProximalGradient
from sparseworks.solve.coders.descent import path
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.datafits import Quadratic
from sparseworks.solve.penalties import L1, NonNegativeL1
from sparseworks.solve.penalties import ElasticNet as ElasticNetPenalty
from sparseworks.solve.penalty import Penalty


class SparseRegressor(RegressorMixin, BaseEstimator):
    """argmin over w (and an intercept) of mean of f(X w; y) + g(w), one w a column of y.

    Args:
        penalty: g, a `Penalty` or its name or mapping; None: a tenth of the l1 norm.
        datafit: f, likewise; "quadratic" is ||X w - y||^2 / 2. Others take no intercept.
        fit_intercept: by centring.
        tol: of the certificate (duality gap over the cost at 0, or the violation).
        max_iter: passes, or iterations.

    Attributes:
        coef_, intercept_: as scikit-learn has them.
        n_iter_: the most that a target took.
        certificate_: of every target; `proves_` says what it is.
    """

    _several = True

    def __init__(
        self,
        penalty: Penalty | str | dict[str, Any] | None = None,
        datafit: Datafit | str | dict[str, Any] = "quadratic",
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
    ):
        self.penalty = penalty
        self.datafit = datafit
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Find the coefficients.

        Args:
            X: array or tensor (samples, features).
            y: (samples,) or (samples, targets).

        Raises:
            ShapeError, DtypeError, NonFiniteError: tensors that cannot be used (arrays: scikit-learn's ValueError).
            RecipeError: an intercept with another datafit than the quadratic.
        """
        x, target = self._read(X, y)
        coder, means = self._coder(len(x)), self._means(x, target)
        scale = 1 / len(x) ** 0.5 if isinstance(coder.datafit, Quadratic) else 1.0  # type: ignore[attr-defined]
        atoms = ((x - means[0]) * scale).T.contiguous()
        solution = coder(atoms, ((target - means[1]) * scale).T.contiguous())
        if not bool(solution.converged.all()):
            text = f"{int((~solution.converged).sum())} targets stopped at a {solution.proves} above {self.tol}."
            warnings.warn(text, ConvergenceWarning, stacklevel=2)
        self.n_iter_ = max(1, int(solution.steps.max()))
        self.proves_ = solution.proves
        self.certificate_ = self._give(solution.certificate)
        self._keep(solution.z, means)
        return self

    def predict(self, X: Any) -> Any:
        """X w + intercept."""
        check_is_fitted(self)
        if isinstance(X, Tensor):
            if X.dim() != 2 or X.shape[1] != self.n_features_in_:
                raise ShapeError(f"X must be (samples, {self.n_features_in_}), got {tuple(X.shape)}.")
            coefficients = torch.as_tensor(self.coef_).to(X)
            return X @ (coefficients.mT if coefficients.dim() == 2 else coefficients) + torch.as_tensor(
                self.intercept_
            ).to(X)
        data = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return data @ np.asarray(self.coef_).T + np.asarray(self.intercept_)

    def _read(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        self._tensors = isinstance(X, Tensor)
        if isinstance(X, Tensor):
            seen = torch.as_tensor(y)
            if X.dim() != 2 or not seen.dim() or len(seen) != len(X) or not X.numel():
                raise ShapeError(
                    f"Needs (samples, features), (samples, ...), got {tuple(X.shape)}, {tuple(seen.shape)}."
                )
            if X.dtype not in (torch.float32, torch.float64):
                raise DtypeError(f"Features are float32 or float64, got {X.dtype}: convert them.")
            x, target = X, seen.to(X)
            self.n_features_in_ = X.shape[1]
            vars(self).pop("feature_names_in_", None)  # of an earlier fit: tensors have no names
            if not bool(torch.isfinite(target).all()):
                raise NonFiniteError("The targets hold NaN or infinity.")
        else:
            data, values = validate_data(
                self, X, y, multi_output=self._several, y_numeric=True, dtype=[np.float64, np.float32]
            )
            x, target = (
                torch.from_numpy(np.array(data)),
                torch.from_numpy(np.asarray(values, dtype=np.asarray(data).dtype)),
            )
        self._flat = target.dim() == 1
        return x, target.reshape(len(target), -1)

    def _coder(self, samples: int) -> Coder:
        penalty, datafit = self._penalty(), self.datafit
        datafit = datafit if isinstance(datafit, Datafit) else from_config("datafit", datafit)
        if not isinstance(datafit, Quadratic):
            if self.fit_intercept:
                raise RecipeError(
                    "An intercept comes by centring, for the quadratic datafit only: set fit_intercept=False."
                )
            if not penalty.convex:
                raise RecipeError("Penalties that are not convex are fitted with the quadratic datafit only.")
            if hasattr(penalty, "weight"):
                penalty = replace(penalty, weight=penalty.weight * samples)  # type: ignore[type-var, attr-defined]
        bounded = isinstance(datafit, Quadratic) or type(datafit).bend is not Datafit.bend
        kind = CoordinateDescent if penalty.separable and bounded else ProximalGradient
        return kind(datafit=datafit, penalty=penalty, tolerance=self.tol, iterations=self.max_iter)

    def _penalty(self) -> Penalty:
        penalty = L1(0.1) if self.penalty is None else self.penalty
        return penalty if isinstance(penalty, Penalty) else from_config("penalty", penalty)

    def _means(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        means = x.mean(0), target.mean(0)
        return means if self.fit_intercept else (torch.zeros_like(means[0]), torch.zeros_like(means[1]))

    def _keep(self, coefficients: Tensor, means: tuple[Tensor, Tensor]) -> None:
        intercept = means[1] - coefficients @ means[0]
        self.coef_ = self._give(coefficients[0] if self._flat else coefficients)
        self.intercept_ = self._give(intercept[0] if self._flat else intercept)

    def _give(self, values: Tensor) -> Any:
        if self._tensors:
            return values
        return values.numpy() if values.dim() else values.item()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self._several
        return tags


class Lasso(SparseRegressor):
    """argmin ||X w + b - y||^2 / (2 samples) + alpha |w|_1, w >= 0 where `positive`: by coordinate descent."""

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        positive: bool = False,
        tol: float = 1e-6,
        max_iter: int = 5000,
    ):
        super().__init__(fit_intercept=fit_intercept, tol=tol, max_iter=max_iter)
        self.alpha = alpha
        self.positive = positive

    def _penalty(self) -> Penalty:
        return NonNegativeL1(self.alpha) if self.positive else L1(self.alpha)


class ElasticNet(SparseRegressor):
    """argmin ||X w + b - y||^2 / (2 samples) + alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2)."""

    def __init__(
        self,
        alpha: float = 1.0,
        l1_ratio: float = 0.5,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
    ):
        super().__init__(fit_intercept=fit_intercept, tol=tol, max_iter=max_iter)
        self.alpha = alpha
        self.l1_ratio = l1_ratio

    def _penalty(self) -> Penalty:
        return ElasticNetPenalty(self.alpha, self.l1_ratio)


class LassoCV(SparseRegressor):
    """The lasso with the alpha, of a falling path, whose error on left-out folds is least.

    Args:
        n_alphas, eps: alphas, evenly in logarithms from the least that gives 0 down to `eps` times that.
        cv: as scikit-learn has it; None: five folds.

    Attributes:
        alpha_, alphas_: the chosen one, and all.
        mse_path_: (alphas, folds).
    """

    _several = False

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        n_alphas: int = 100,
        cv: Any = None,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
    ):
        super().__init__(fit_intercept=fit_intercept, tol=tol, max_iter=max_iter)
        self.eps = eps
        self.n_alphas = n_alphas
        self.cv = cv

    def fit(self, X: Any, y: Any) -> Self:
        """A warm path on every fold, and the lasso on all samples at the best alpha."""
        x, target = self._read(X, y)
        if target.shape[1] != 1:
            raise ValueError(f"LassoCV takes one target, got y with {target.shape[1]}.")
        alphas, _ = self._path(x, target, self.n_alphas)
        splitter: Any = check_cv(self.cv)
        folds = list(splitter.split(x.cpu().numpy(), target.cpu().numpy()))
        errors = [self._errors(x, target, alphas, *map(torch.from_numpy, fold)) for fold in folds]
        self.mse_path_ = torch.stack(errors, dim=1).numpy()
        self.alpha_ = float(alphas[int(self.mse_path_.mean(1).argmin())])
        self.alphas_ = alphas.numpy()
        return super().fit(X, y if isinstance(X, Tensor) else np.asarray(y))

    def _penalty(self) -> Penalty:
        return L1(self.alpha_)

    def _path(self, x: Tensor, target: Tensor, alphas: Tensor | int) -> tuple[Tensor, Tensor]:
        """Alphas, and coefficients (alphas, features)."""
        means, scale = self._means(x, target), 1 / len(x) ** 0.5
        coder = CoordinateDescent(tolerance=self.tol, iterations=self.max_iter)
        atoms, signal = ((x - means[0]) * scale).T.contiguous(), ((target - means[1]) * scale)[:, 0].contiguous()
        weights, found = path(atoms, signal, coder, alphas, self.eps)
        return weights, torch.cat([solution.z for solution in found])

    def _errors(self, x: Tensor, target: Tensor, alphas: Tensor, train: Tensor, test: Tensor) -> Tensor:
        _, coefficients = self._path(x[train], target[train], alphas)
        means = self._means(x[train], target[train])
        predicted = (x[test] - means[0]) @ coefficients.T + means[1]
        return (predicted - target[test]).square().mean(0).cpu()

"""Sparse coding and dictionary learning with scikit-learn's interface; needs the extra `estimators`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from sparseworks.codes.dictionary import DictionaryLoss, learn_dictionary
from sparseworks.codes.method import CodeMethod
from sparseworks.core.budget import Count
from sparseworks.core.codes import Codes
from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.solve.coder import Coder


class _Coding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What both share: from `components_` to codes."""

    components_: Any

    def __init__(
        self, method: str = "omp", n_nonzero_coefs: int | None = None, options: Mapping[str, Any] | None = None
    ):
        self.method = method
        self.n_nonzero_coefs = n_nonzero_coefs
        self.options = options

    def transform(self, X: Any) -> csr_matrix | Codes:
        """Codes z with z D ~ x, one row a signal.

        Args:
            X: array or tensor (samples, features).

        Returns:
            scipy's CSR matrix for arrays, `Codes` for tensors.
        """
        check_is_fitted(self)
        data = self._read(X, reset=False)
        atoms = torch.as_tensor(self.components_).to(data)
        codes = self._coder()(atoms, data).codes()
        if isinstance(X, Tensor):
            return codes
        ptr, indices, values = (part.numpy() for part in codes.csr())
        return csr_matrix((values, indices, ptr), shape=(len(codes), codes.width))

    def inverse_transform(self, X: Any) -> Any:
        """Signals z D of codes in any of the forms that `transform` gives, or dense."""
        check_is_fitted(self)
        if isinstance(X, Codes):
            return X.dense() @ torch.as_tensor(self.components_).to(X.values)
        return X @ (self.components_ if isinstance(X, Tensor) else np.asarray(self.components_))

    def _coder(self) -> Coder:
        """The method's coder; scikit-learn's default of a tenth of the features where nothing else is said."""
        method, options = CodeMethod.of(self.method), dict(self.options or {})
        if "budget" not in options and any(f.name == "budget" for f in fields(method.coder)):  # type: ignore[arg-type]
            default = max(1, int(0.1 * self.n_features_in_))
            count = default if self.n_nonzero_coefs is None else self.n_nonzero_coefs
            options["budget"] = Count(min(int(count), *self.components_.shape))
        return method.with_(**options).coder if options else method.coder

    def _read(self, X: Any, *, reset: bool) -> Tensor:
        if not isinstance(X, Tensor):
            array: Any = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], order="C")
            return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch has no read-only tensors
        if X.dim() != 2 or X.dtype not in (torch.float32, torch.float64):
            wrong = ShapeError if X.dim() != 2 else DtypeError
            raise wrong(f"Signals are (samples, features) of float32 or float64, got {tuple(X.shape)} of {X.dtype}.")
        if reset:
            self.n_features_in_ = X.shape[1]
            vars(self).pop("feature_names_in_", None)  # of an earlier fit: tensors have no names
        elif X.shape[1] != self.n_features_in_:
            raise ShapeError(f"X has {X.shape[1]} features, but {type(self).__name__} expects {self.n_features_in_}.")
        return X

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class SparseCoder(_Coding):
    """Codes of signals in a given dictionary.

    Args:
        dictionary: one atom a row, array or tensor; None: the signals given to `fit`, each of unit norm, as in classification by
            sparse representation (Wright et al., 2009).
        method: name of a method of codes.
        n_nonzero_coefs: atoms a signal, for methods with a budget; None: a tenth of the features, at least 1.
        options: further options of the method, such as `{"budget": Residual(1e-3)}`.

    Attributes:
        components_: the dictionary.
    """

    def __init__(
        self,
        dictionary: Any = None,
        method: str = "omp",
        n_nonzero_coefs: int | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(method, n_nonzero_coefs, options)
        self.dictionary = dictionary

    def fit(self, X: Any, y: Any = None) -> SparseCoder:
        """Checks the signals against the dictionary, or takes them as one.

        Raises:
            ShapeError: signals and atoms differ in their number of features.
        """
        del y
        data = self._read(X, reset=True)
        if self.dictionary is None:
            norm = data.norm(dim=1, keepdim=True)
            unit = data / torch.where(norm > 0, norm, 1)
            self.components_ = unit if isinstance(X, Tensor) else unit.numpy()
            return self
        self.components_ = self.dictionary if isinstance(self.dictionary, Tensor) else np.asarray(self.dictionary)
        if self.components_.ndim != 2 or self.components_.shape[1] != data.shape[1]:
            raise ShapeError(f"Atoms {self.components_.shape} do not fit signals with {data.shape[1]} features.")
        return self


class DictionaryLearning(_Coding):
    """A dictionary learnt from signals, and codes in it.

    Args:
        n_components: atoms; None: as many as features.
        method: name of a method of codes, for learning and for `transform`.
        n_nonzero_coefs: atoms a signal, for methods with a budget; None: a tenth of the features, at least 1.
        loss: "plain", "masked", or a loss of dictionaries.
        max_iter: passes over the signals.
        batch_size, learning_rate: of the optimiser.
        dict_init: the first dictionary; None: random signals.
        random_state: seed of all that is drawn.
        options: further options of the method.

    Attributes:
        components_: unit atoms, one a row.
        error_: mean squared error of every pass.
        n_iter_: passes made.
    """

    def __init__(
        self,
        n_components: int | None = None,
        method: str = "omp",
        n_nonzero_coefs: int | None = None,
        loss: str | DictionaryLoss = "plain",
        max_iter: int = 100,
        batch_size: int = 200,
        learning_rate: float = 1e-3,
        dict_init: Any = None,
        random_state: Any = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(method, n_nonzero_coefs, options)
        self.n_components = n_components
        self.loss = loss
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.dict_init = dict_init
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> DictionaryLearning:
        """Learns the atoms, see `sparseworks.codes.learn_dictionary`."""
        del y
        data = self._read(X, reset=True)
        atoms = data.shape[1] if self.n_components is None else self.n_components
        self.components_ = torch.empty(atoms, data.shape[1])  # its shape limits the budget
        learnt = learn_dictionary(
            data,
            atoms,
            self._coder(),
            loss=self.loss,
            start=None if self.dict_init is None else torch.as_tensor(self.dict_init),
            epochs=self.max_iter,
            batch=self.batch_size,
            rate=self.learning_rate,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        self.components_ = learnt.dictionary if isinstance(X, Tensor) else learnt.dictionary.numpy()
        self.error_, self.n_iter_ = learnt.losses, self.max_iter
        return self

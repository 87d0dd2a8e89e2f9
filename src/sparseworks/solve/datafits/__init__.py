"""Datafits: one file each."""

from __future__ import annotations

from sparseworks.solve.datafit import DATAFITS, Datafit
from sparseworks.solve.datafits.cox import Cox
from sparseworks.solve.datafits.huber import Huber
from sparseworks.solve.datafits.logistic import Logistic
from sparseworks.solve.datafits.poisson import Poisson
from sparseworks.solve.datafits.quadratic import Quadratic

__all__ = ["DATAFITS", "Cox", "Datafit", "Huber", "Logistic", "Poisson", "Quadratic"]

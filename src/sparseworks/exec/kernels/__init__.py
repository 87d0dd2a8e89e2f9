"""Kernels that multiply with packed weights; importing this package registers them in `KERNELS`."""

from __future__ import annotations

import sparseworks.exec.formats  # noqa: F401  kernels read their packed forms
from sparseworks.exec.kernels.dense import DenseKernel as DenseKernel
from sparseworks.exec.kernels.few_rows import GemvKernel as GemvKernel
from sparseworks.exec.kernels.few_rows import InputBitsKernel as InputBitsKernel
from sparseworks.exec.kernels.few_rows import InputMajorKernel as InputMajorKernel
from sparseworks.exec.kernels.few_rows import SkippingKernel as SkippingKernel
from sparseworks.exec.kernels.gpu import BitmaskGpuKernel as BitmaskGpuKernel
from sparseworks.exec.kernels.gpu import BsrGpuKernel as BsrGpuKernel
from sparseworks.exec.kernels.gpu import CsrGpuKernel as CsrGpuKernel
from sparseworks.exec.kernels.gpu import InputMajorGpuKernel as InputMajorGpuKernel
from sparseworks.exec.kernels.gpu import SemiGpuKernel as SemiGpuKernel
from sparseworks.exec.kernels.many_rows import Int8Kernel as Int8Kernel
from sparseworks.exec.kernels.sparse import BalancedKernel as BalancedKernel
from sparseworks.exec.kernels.sparse import BitmaskKernel as BitmaskKernel
from sparseworks.exec.kernels.sparse import CsrKernel as CsrKernel
from sparseworks.exec.kernels.sparse import FanInKernel as FanInKernel
from sparseworks.exec.kernels.sparse import Groups4Kernel as Groups4Kernel
from sparseworks.exec.kernels.sparse import NMGKernel as NMGKernel
from sparseworks.exec.kernels.sparse import NMKernel as NMKernel
from sparseworks.exec.kernels.sparse import PairsKernel as PairsKernel
from sparseworks.exec.kernels.sparse import PanelKernel as PanelKernel
from sparseworks.exec.kernels.sparse import TileKernel as TileKernel

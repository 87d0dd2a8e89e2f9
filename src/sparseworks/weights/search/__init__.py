"""Search for architectures that are good when sparse."""

from __future__ import annotations

from sparseworks.weights.search.cell import Cell as Cell
from sparseworks.weights.search.cell import Chosen as Chosen
from sparseworks.weights.search.cell import Edge as Edge
from sparseworks.weights.search.cell import Genotype as Genotype
from sparseworks.weights.search.cell import Zero as Zero
from sparseworks.weights.search.cell import cells as cells
from sparseworks.weights.search.cell import derive as derive
from sparseworks.weights.search.sparse import Searched as Searched
from sparseworks.weights.search.sparse import search_sparse as search_sparse

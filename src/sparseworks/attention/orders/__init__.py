"""Orders of tokens in which those that go together lie in one unit."""

from sparseworks.attention.orders.clusters import Semantic as Semantic
from sparseworks.attention.orders.grid import Cells as Cells
from sparseworks.attention.orders.temporal import HeadLayout as HeadLayout

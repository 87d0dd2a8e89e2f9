"""The registered methods of retrieval, one file a group."""

from __future__ import annotations

from sparseworks.retrieval.methods import embeddings as embeddings
from sparseworks.retrieval.methods import encoders as encoders
from sparseworks.retrieval.methods import fusion as fusion
from sparseworks.retrieval.methods import indexes as indexes

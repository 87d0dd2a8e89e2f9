"""Published methods as compositions: a name, the nouns it puts together, where it comes from, and what it claims."""

from __future__ import annotations

from sparseworks.weights.methods import cycles as cycles
from sparseworks.weights.methods import detectors as detectors
from sparseworks.weights.methods import factors as factors
from sparseworks.weights.methods import nm as nm
from sparseworks.weights.methods import oneshot as oneshot
from sparseworks.weights.methods import scratch as scratch
from sparseworks.weights.methods import shrink as shrink
from sparseworks.weights.methods import streams as streams
from sparseworks.weights.methods import structured as structured
from sparseworks.weights.methods import training as training

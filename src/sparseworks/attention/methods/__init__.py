"""Published methods of attention as compositions: a name, the nouns it puts together, where it comes from, and what it claims."""

from sparseworks.attention.methods import baselines as baselines
from sparseworks.attention.methods import caches as caches
from sparseworks.attention.methods import decode as decode
from sparseworks.attention.methods import denoising as denoising
from sparseworks.attention.methods import fixed as fixed
from sparseworks.attention.methods import frontier as frontier
from sparseworks.attention.methods import prefill as prefill
from sparseworks.attention.methods import steps as steps

"""The kinds of cache, registered by being imported."""

from sparseworks.attention.cache.formed import FormedLayer as FormedLayer
from sparseworks.attention.cache.indexed import IndexedLayer as IndexedLayer
from sparseworks.attention.cache.paged import PagedLayer as PagedLayer
from sparseworks.attention.cache.ragged import RaggedLayer as RaggedLayer
from sparseworks.attention.cache.shadowed import ShadowedLayer as ShadowedLayer

"""Forms of sparse attention that are trained: one file a method, each with what it becomes at inference."""

from sparseworks.attention.trained import seer as seer
from sparseworks.attention.trained.attach import Attached as Attached
from sparseworks.attention.trained.attach import attach as attach
from sparseworks.attention.trained.attach import training as training
from sparseworks.attention.trained.gate import Gate as Gate
from sparseworks.attention.trained.method import TrainedAttention as TrainedAttention
from sparseworks.attention.trained.trainable import Sizes as Sizes
from sparseworks.attention.trained.trainable import Trainable as Trainable

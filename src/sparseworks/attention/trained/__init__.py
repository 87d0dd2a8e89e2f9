"""Forms of sparse attention that are trained: one file a method, each with what it becomes at inference."""

from sparseworks.attention.trained import arm as arm
from sparseworks.attention.trained import dma as dma
from sparseworks.attention.trained import dms as dms
from sparseworks.attention.trained import llava as llava
from sparseworks.attention.trained import mosa as mosa
from sparseworks.attention.trained import nosa as nosa
from sparseworks.attention.trained import nsa as nsa
from sparseworks.attention.trained import pruning as pruning
from sparseworks.attention.trained import seer as seer
from sparseworks.attention.trained import sparsifiner as sparsifiner
from sparseworks.attention.trained import ssa as ssa
from sparseworks.attention.trained.attach import Attached as Attached
from sparseworks.attention.trained.attach import attach as attach
from sparseworks.attention.trained.attach import training as training
from sparseworks.attention.trained.distill import distillation as distillation
from sparseworks.attention.trained.entmax import entmax as entmax
from sparseworks.attention.trained.gate import Gate as Gate
from sparseworks.attention.trained.method import TrainedAttention as TrainedAttention
from sparseworks.attention.trained.trainable import Sizes as Sizes
from sparseworks.attention.trained.trainable import Trainable as Trainable

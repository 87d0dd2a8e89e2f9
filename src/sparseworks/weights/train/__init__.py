"""Sparse training: a model, an optimiser, and a method whose regime moves the supports while they run."""

from __future__ import annotations

from sparseworks.weights.train.adam import AdamDecay as AdamDecay
from sparseworks.weights.train.adam import AdamShrink as AdamShrink
from sparseworks.weights.train.alternate import Alternate as Alternate
from sparseworks.weights.train.bidirectional import Bidirectional as Bidirectional
from sparseworks.weights.train.branch import PooledLinear as PooledLinear
from sparseworks.weights.train.branch import add_branches as add_branches
from sparseworks.weights.train.callbacks import lightning_callback as lightning_callback
from sparseworks.weights.train.callbacks import trainer_callback as trainer_callback
from sparseworks.weights.train.cric import ShrinkAfterTrials as ShrinkAfterTrials
from sparseworks.weights.train.dropgrow import DropGrow as DropGrow
from sparseworks.weights.train.fade import FadePatterns as FadePatterns
from sparseworks.weights.train.fade import FadeValues as FadeValues
from sparseworks.weights.train.fanin import FanInDropGrow as FanInDropGrow
from sparseworks.weights.train.feedback import Feedback as Feedback
from sparseworks.weights.train.feedback import Reconfigure as Reconfigure
from sparseworks.weights.train.flow import FeatureFlow as FeatureFlow
from sparseworks.weights.train.gammas import SparseGammas as SparseGammas
from sparseworks.weights.train.gradual import Gradual as Gradual
from sparseworks.weights.train.gradual import Regrow as Regrow
from sparseworks.weights.train.group_prox import GroupProx as GroupProx
from sparseworks.weights.train.hesso import ShrinkGroups as ShrinkGroups
from sparseworks.weights.train.hold import Hold as Hold
from sparseworks.weights.train.metrics import Explored as Explored
from sparseworks.weights.train.metrics import churn as churn
from sparseworks.weights.train.nested import Nested as Nested
from sparseworks.weights.train.penalty import Penalised as Penalised
from sparseworks.weights.train.penalty import RipeStop as RipeStop
from sparseworks.weights.train.popup import EdgePopup as EdgePopup
from sparseworks.weights.train.quantised import Quantised as Quantised
from sparseworks.weights.train.regions import RegionGate as RegionGate
from sparseworks.weights.train.rewire import Rewire as Rewire
from sparseworks.weights.train.soft import GrowingL2 as GrowingL2
from sparseworks.weights.train.soft import SoftShrink as SoftShrink
from sparseworks.weights.train.sparsifier import Event as Event
from sparseworks.weights.train.sparsifier import Sparsifier as Sparsifier
from sparseworks.weights.train.state import load_state as load_state
from sparseworks.weights.train.state import save_state as save_state
from sparseworks.weights.train.straight import Straight as Straight
from sparseworks.weights.train.threshold import Annealed as Annealed
from sparseworks.weights.train.threshold import LearnedThreshold as LearnedThreshold
from sparseworks.weights.train.thresholds import ThresholdGammas as ThresholdGammas
from sparseworks.weights.train.thresholds import keep_above as keep_above
from sparseworks.weights.train.units import CutGroups as CutGroups
from sparseworks.weights.train.variational import Variational as Variational

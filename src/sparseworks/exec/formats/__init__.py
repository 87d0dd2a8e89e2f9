"""Packed layouts of kept weights, one file each; importing this package registers them in `FORMATS`."""

from __future__ import annotations

from sparseworks.exec.formats.balanced import Balanced as Balanced
from sparseworks.exec.formats.bitmask import Bitmask as Bitmask
from sparseworks.exec.formats.bsr import Bsr as Bsr
from sparseworks.exec.formats.csr16 import Csr16 as Csr16
from sparseworks.exec.formats.dense import Dense as Dense
from sparseworks.exec.formats.fanin import FanIn as FanIn
from sparseworks.exec.formats.groups4 import Groups4 as Groups4
from sparseworks.exec.formats.inbits import InputBits as InputBits
from sparseworks.exec.formats.inmajor import InputMajor as InputMajor
from sparseworks.exec.formats.nm import NM as NM
from sparseworks.exec.formats.nmg import NMG as NMG
from sparseworks.exec.formats.pairs import Pairs as Pairs
from sparseworks.exec.formats.panel import Panel as Panel
from sparseworks.exec.formats.semi import Semi as Semi
from sparseworks.exec.formats.taps import Taps as Taps
from sparseworks.exec.formats.tile import Tile as Tile

"""Other people's searches behind our ask and tell, for ``search_quality.py``. Needs ``pip install -e ".[bench]"``.

Every peer keeps its own defaults, and its own idea of trials that are under way, have failed or were stopped early.
Only the space and the results are translated: numbers by their bounds and scale, ordered choices as integers, others as
categories, conditions where the peer knows them (otherwise it proposes all parameters, and the inactive ones are left
out). Nothing helps a peer: what it proposes twice is trained twice.
"""

from __future__ import annotations

from peers.base import Peer
from peers.hyperopt_peers import HyperoptRaw, RayHyperopt
from peers.optuna_peers import OptunaCMA, OptunaTPE
from peers.smac_peer import SMAC
from peers.syne_tune_peers import SyneASHA, SyneBORE, SyneCQR, SyneEvolution

__all__ = ["PEERS", "Peer"]

PEERS: dict[str, type[Peer]] = {
    "optuna-tpe": OptunaTPE,
    "cma-es": OptunaCMA,
    "hyperopt-raw": HyperoptRaw,
    "ray-asha-hyperopt": RayHyperopt,
    "syne-evolution": SyneEvolution,
    "syne-bore": SyneBORE,
    "syne-cqr": SyneCQR,
    "syne-asha": SyneASHA,
    "smac": SMAC,
}
"""The peers by name."""

"""Compiler passes, in folders by what they are about: each is given a graph and gives a new one, the same for the
same input. `pipeline.py` holds their order and the table of their names.

Importable as `propc.passes`; they may import `propc.estimators` and all below, not what runs a graph.
"""

from propc.passes.insert.explore_alternatives import ExploreAlternatives
from propc.passes.insert.gaussian_shaping import GaussianShaping
from propc.passes.memory.checkpoint import Checkpoint
from propc.passes.memory.chunk_batch import ChunkBatch
from propc.passes.pipeline import Pass, PassChoice, Pipeline, PipelineChange, known_passes, register
from propc.passes.plates.introduce_plates import IntroducePlates
from propc.passes.plates.merge_plates import MergePlates
from propc.passes.plates.reduce_plates import ReducePlates
from propc.passes.routing.drop_idle import DropIdle
from propc.passes.routing.force_targets import ForceTargets
from propc.passes.routing.fuse import Fuse
from propc.passes.routing.prune import Prune
from propc.passes.routing.route_messages import RouteMessages
from propc.passes.scan.roll_scans import RollScans
from propc.passes.schedule.deduplicate_stages import DeduplicateStages
from propc.passes.schedule.schedule import Schedule
from propc.passes.sites.assign_propagators import AssignPropagators
from propc.passes.sites.attach import Attach
from propc.passes.sites.find_influence import FindInfluence
from propc.passes.sites.prepare_estimators import PrepareEstimators
from propc.passes.sites.split_costs import SplitCosts
from propc.passes.targets.expand_targets import ExpandTargets

__all__ = [
    "AssignPropagators",
    "Attach",
    "Checkpoint",
    "ChunkBatch",
    "DeduplicateStages",
    "DropIdle",
    "ExpandTargets",
    "ExploreAlternatives",
    "FindInfluence",
    "ForceTargets",
    "Fuse",
    "GaussianShaping",
    "IntroducePlates",
    "MergePlates",
    "Pass",
    "PassChoice",
    "Pipeline",
    "PipelineChange",
    "PrepareEstimators",
    "Prune",
    "ReducePlates",
    "RollScans",
    "RouteMessages",
    "Schedule",
    "SplitCosts",
    "known_passes",
    "register",
]

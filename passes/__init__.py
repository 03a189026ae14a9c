"""Compiler passes, one a file, each from a graph to a new graph. Importable as `propc.passes`."""

from propc.passes.assign_propagators import AssignPropagators
from propc.passes.attach import Attach
from propc.passes.base import Pass, PassChoice, Pipeline, PipelineChange, known_passes, register
from propc.passes.checkpoint import Checkpoint
from propc.passes.chunk_batch import ChunkBatch
from propc.passes.deduplicate_stages import DeduplicateStages
from propc.passes.draw_together import DrawTogether
from propc.passes.drop_idle import DropIdle
from propc.passes.expand_targets import ExpandTargets
from propc.passes.explore_alternatives import ExploreAlternatives
from propc.passes.find_influence import FindInfluence
from propc.passes.force_targets import ForceTargets
from propc.passes.fuse import Fuse
from propc.passes.gaussian_shaping import GaussianShaping
from propc.passes.introduce_plates import IntroducePlates
from propc.passes.merge_plates import MergePlates
from propc.passes.prepare_estimators import PrepareEstimators
from propc.passes.prune import Prune
from propc.passes.reduce_plates import ReducePlates
from propc.passes.roll_scans import RollScans
from propc.passes.route_messages import RouteMessages
from propc.passes.schedule import Schedule
from propc.passes.split_costs import SplitCosts

__all__ = [
    "AssignPropagators",
    "Attach",
    "Checkpoint",
    "ChunkBatch",
    "DeduplicateStages",
    "DrawTogether",
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

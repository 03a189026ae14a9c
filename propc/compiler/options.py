"""What `propc.compile` was told, checked at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from propc.errors import PropcTypeError, message
from propc.passes import (
    AssignPropagators,
    DeduplicateStages,
    ExpandTargets,
    ExploreAlternatives,
    FindInfluence,
    Fuse,
    IntroducePlates,
    MergePlates,
    PassChoice,
    Pipeline,
    PipelineChange,
    PrepareEstimators,
    Prune,
    ReducePlates,
    RollScans,
    RouteMessages,
    Schedule,
    SplitCosts,
)
from propc.propagators.sites.samples import positive
from propc.runtime.backends import check_backend


@dataclass(frozen=True)
class Options:
    """What `propc.compile` was told."""

    estimator: Any = "infer"
    passes: Iterable[PassChoice | PipelineChange] = ()
    backend: str = "eager"
    validate: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.passes, str) or not isinstance(self.passes, Iterable):
            given = getattr(self.passes, "__name__", repr(self.passes))
            fix = f"Write passes=[{given}]." if self.passes is not None else "Write passes=[] for none."
            raise PropcTypeError(message(f"passes= takes a list of passes; got {given}", fix))
        object.__setattr__(self, "passes", tuple(self.passes))
        if not isinstance(self.validate, bool):
            raise PropcTypeError(message(f"option validate={self.validate!r} must be True or False"))
        check_backend(self.backend)
        if self.chunk is not None:
            positive("chunk", self.chunk)
        _check_estimator(self.estimator)
        self.pipeline()

    def pipeline(self) -> Pipeline:
        """The default passes with the user's among them."""
        return Pipeline(
            (
                SplitCosts(),
                FindInfluence(),
                PrepareEstimators(self.estimator),
                AssignPropagators(self.estimator),
                IntroducePlates(self.chunk),
                MergePlates(),
                ReducePlates(),
                ExpandTargets(),
                RouteMessages(),
                Prune(),
                ExploreAlternatives(self.chunk),
                DeduplicateStages(),
                Fuse(),
                RollScans(),
                Schedule(),
            )
        ).with_passes(self.passes)


def _check_estimator(choice: Any) -> None:
    """Find a misspelt estimator when the function is compiled, not when it is called."""
    from propc.estimators import resolve

    for pattern in choice if isinstance(choice, Mapping) else ():
        if not isinstance(pattern, str):
            raise PropcTypeError(
                message(
                    f"a mapping in estimator= goes from patterns of site names to estimators; got {pattern!r}",
                    "Write {'x*': 'lr'}.",
                )
            )
    choices: Sequence[Any] = list(choice.values()) if isinstance(choice, Mapping) else [choice]
    for each in choices:
        if not callable(each) or isinstance(each, type):
            resolve(each)

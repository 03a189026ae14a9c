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
from propc.passes.sites.assign_propagators import JumpProbe
from propc.propagators.sites.samples import positive
from propc.runtime.backends import check_backend


@dataclass(frozen=True)
class Options:
    """What `propc.compile` was told."""

    estimator: Any = "infer"
    passes: Iterable[PassChoice | PipelineChange] = ()
    backend: str = "eager"
    validate: bool | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.passes, str) or not isinstance(self.passes, Iterable):
            given = getattr(self.passes, "__name__", repr(self.passes))
            fix = f"Write passes=[{given}]." if self.passes is not None else "Write passes=[] for none."
            raise PropcTypeError(message(f"passes= takes a list of passes; got {given}", fix))
        object.__setattr__(self, "passes", tuple(self.passes))
        if not (self.validate is None or isinstance(self.validate, bool)):
            raise PropcTypeError(message(f"option validate={self.validate!r} must be True or False, or None"))
        check_backend(self.backend)
        if self.chunk is not None:
            positive("chunk", self.chunk)
        _check_estimator(self.estimator)
        self.pipeline()

    def pipeline(self, jumps: JumpProbe | None = None) -> Pipeline:
        """The default passes with the user's among them; `jumps` looks for selections at which costs jump."""
        return Pipeline(
            (
                SplitCosts(),  # first, as it cuts the program again, and users' passes name the costs that it makes
                FindInfluence(),  # before a refit, behind which a site would seem to reach nothing returned
                PrepareEstimators(self.estimator),  # before rules are chosen, which a refit gives other paths
                AssignPropagators(self.estimator, jumps),  # whose rules ask for plates
                IntroducePlates(self.chunk),  # at sites alone; the rest of the program gets plates when
                MergePlates(),  # it is known which are one
                ReducePlates(),
                ExpandTargets(),  # refuses sites in plates, which are known now; could as well stand behind the next
                RouteMessages(),
                Prune(),  # by routes: without any, sites would only draw, of which no copies are to be made
                ExploreAlternatives(self.chunk),  # whose copies are segments too, and get their stages from
                DeduplicateStages(),  # this one, which could as well stand behind the next
                Fuse(),  # before steps are rolled, whose tokens are sums of its joins
                RollScans(),  # behind all that treats the steps as those of an unrolled loop
                Schedule(),  # of the nodes that there are in the end
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

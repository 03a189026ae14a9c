"""What an estimator is, and the table of their names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.ir.records import Jump
from propc.ir.site_record import SiteRecord
from propc.propagators.baselines import NoBaseline
from propc.propagators.gated import Gated
from propc.propagators.propagator import Propagator
from propc.propagators.registry import find, known_propagators
from propc.propagators.sites.plain import Plain
from propc.propagators.sites.site_propagator import SitePropagator
from propc.types import TensorType
from propc.util.configure import Configurable, printed
from propc.util.name_table import check_entry, check_name

if TYPE_CHECKING:
    from propc.ir.pass_request import Step


@dataclass(frozen=True)
class SiteView(SiteRecord):
    """What an estimator, or a user's function of the site, gets to know of a site.

    Attributes:
        costs: names of the costs that it influences; a resample node stands for those behind it.
        blocked: those that no differentiable path reaches.
        rough: those that it also reaches through a comparison, rounding or an integer.
        phi: types of the distribution's tensors.
        alone: whether no other site lies before it or behind it.
        bounds: those of the costs that are multi-sample bounds.
        jumps: where what comes after it jumps along its path, as far as that is known.
    """

    costs: tuple[str, ...]
    blocked: tuple[str, ...]
    rough: tuple[str, ...]
    phi: tuple[TensorType, ...] = ()
    alone: bool = True
    bounds: tuple[str, ...] = ()
    jumps: tuple[Jump, ...] = ()

    @property
    def elsewhere(self) -> str:
        """Which estimators an error may advise here, where its own cannot work."""
        return "'lr' or 'rp'" if self.spec.has_rsample else "'lr'"


@dataclass(frozen=True)
class Estimator(Configurable, ABC):
    """How gradients pass a site: the user's choice. Options are dataclass fields.

    An estimator turns into a propagator at each site; it refuses, with the site's name,
    where its mathematics does not hold.

    Attributes:
        name: printed name; by default the registered one, or that of the class.
        keeps_name: print its own name also where its rule has that of another estimator.
    """

    name: ClassVar[str] = "estimator"
    keeps_name: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = printed(cls)

    @abstractmethod
    def propagator(self, site: SiteView) -> tuple[Propagator, str]:
        """The rule at this site and why it was chosen.

        Raises:
            EstimatorError: it cannot work at this site.
        """

    def without_gradient(self, site: SiteView) -> SitePropagator:
        """The rule where a call wants no gradient: it draws as often as the estimator does."""
        return Plain()

    def passes(self, sites: tuple[str, ...]) -> tuple[Step, ...]:
        """Passes to run before rules are assigned, for the sites that have chosen it or an equal one.

        Each is a `propc.ir.PassRequest`, or a pass itself.
        """
        return ()


@dataclass(frozen=True)
class Given(Estimator):
    """A propagator that the user gave in place of an estimator."""

    rule: Propagator

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.rule.name

    def propagator(self, site: SiteView) -> tuple[Propagator, str]:
        return at_site(self.rule, site), "asked for"


SiteChoice = str | Estimator | Propagator | type[Estimator] | type[Propagator]
"""What a user can give for one site: a name, an estimator or a propagator, the class of one."""

EstimatorChoice = SiteChoice | Mapping[str, SiteChoice] | Callable[[SiteView], SiteChoice | None]
"""What ``estimator=`` takes: one for all sites, one for each pattern of site names, or a function of the site."""


def at_site(rule: Propagator, site: SiteView) -> SitePropagator:
    """A propagator as a site can have it: one written as `forward` and `backward` behind a gate of autograd."""
    if isinstance(rule, SitePropagator):
        return rule
    return Gated(rule, NoBaseline() if site.batched else None)


E = TypeVar("E", bound=type[Estimator])
_TABLE: dict[str, Callable[..., Estimator]] = {}
_ELSEWHERE = {  # names that other libraries and papers use
    "reinforce": "lr",
    "score": "lr",
    "scorefunction": "lr",
    "likelihoodratio": "lr",
    "pathwise": "rp",
    "reparam": "rp",
    "reparameterization": "rp",
    "reparametrization": "rp",
    "rsample": "rp",
    "totalpropagation": "tp",
    "straightthrough": "st",
    "gumbel": "gumbel_softmax",
    "concrete": "gumbel_softmax",
    "marginalize": "enumerate",
    "exact": "enumerate",
    "measurevalued": "mvd",
    "leg": "local",
    "auto": "infer",
}


def register_estimator(name: str) -> Callable[[E], E]:
    """Class decorator: make an estimator known by `name` in ``estimator=``.

    Raises:
        PropcTypeError: a name that is no string; no estimator class.
        PropcValueError: the name is taken by another class.
    """
    check_name(name, "an estimator", "propc.register_estimator")

    def register(cls: E) -> E:
        check_entry(_TABLE, name, cls, "an estimator", Estimator)
        _TABLE[name] = cls
        if cls.name == printed(cls):
            cls.name = name
        return cls

    return register


def known_estimators() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_TABLE))


def estimator(name: str, **options: Any) -> Estimator:
    """An estimator by name with options, such as ``estimator("tp", target="beta", weights="past")``.

    Raises:
        PropcValueError: unknown name, option or value; the message lists the known ones and the nearest.
    """
    if name not in _TABLE:
        plain = re.sub(r"[^a-z]", "", str(name).lower())
        hint = f"That is {_ELSEWHERE[plain]!r} here. " if plain in _ELSEWHERE else ""
        raise PropcValueError(message(f"unknown estimator {name!r}", hint or nearest(str(name), _TABLE)))
    make = _TABLE[name]
    known = [f.name for f in fields(make)] if isinstance(make, type) else []
    for option in options:
        if option not in known:
            raise PropcValueError(message(f"unknown option {option!r} of estimator {name!r}", nearest(option, known)))
    return make(**options)


def resolve(choice: Any) -> Estimator:
    """An estimator from a name or an estimator object.

    Raises:
        PropcTypeError: anything else.
    """
    if isinstance(choice, Estimator):
        return choice
    if isinstance(choice, Propagator) or (isinstance(choice, type) and issubclass(choice, Propagator)):
        return Given(find(choice))
    if isinstance(choice, str):
        return Given(find(choice)) if choice not in _TABLE and choice in known_propagators() else estimator(choice)
    if isinstance(choice, type) and issubclass(choice, (Estimator, Propagator)):
        return resolve(choice())
    raise PropcTypeError(
        message(
            f"an estimator is a name or an Estimator; got {choice!r}",
            f"Known names: {', '.join(map(repr, known_estimators()))}. To choose by site, give propc.compile a mapping "
            "from patterns of site names, or a function of the site.",
        )
    )

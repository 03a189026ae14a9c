"""`gumbel_softmax`, and the straight-through estimators: the cotangent on a draw goes through something smooth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from propc import propagators
from propc.errors import EstimatorError
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_path_from_draw
from propc.propagators.sites.relaxed import (
    GumbelRaoRule,
    GumbelSoftmaxRule,
    ReinMaxRule,
    RelaxedRule,
    StraightThroughGumbelRule,
    StraightThroughRule,
)
from propc.propagators.sites.samples import positive
from propc.propagators.sites.temperature import Temperature


@dataclass(frozen=True)
class Relaxed(Estimator):
    """What these have in common: a discrete site, and a path from its draw to every cost.

    Attributes:
        rule: what they do at it.
    """

    rule: ClassVar[Callable[..., RelaxedRule]]

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        return self.rule(require_path_from_draw(self.name, site), **self._options()), "asked for"

    def _options(self) -> dict[str, Any]:
        """Those of the rule."""
        return {}


class Tempered(Relaxed):
    """Those with a temperature: a field of each, so that it stands in its place among their options."""

    temperature: Any

    def __post_init__(self) -> None:
        Temperature(self.temperature)

    def _options(self) -> dict[str, Any]:
        return {"temperature": Temperature(self.temperature)}


@register_estimator("st")
@dataclass(frozen=True)
class StraightThrough(Relaxed):
    r"""Straight-through estimator: hard draws, and the cotangent on the draw goes to the probabilities as it is.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (∂p/∂φ)ᵀ ∇f(b)
    Requires:     Bernoulli or OneHotCategorical, inside Independent too; f differentiable at the
                  outcomes, along a path to every cost
    Message:      cotangent on b, [batch, ...] → cotangent on φ
    Unbiased:     no: the mean is E[∇f(b)]ᵀ ∂p/∂φ, which is right where f is linear. The value returned,
                  f(b), and the gradients of all else are
    Higher:       first derivatives only, an error says so
    Costs:        those of one draw
    Reference:    Bengio, Léonard & Courville (2013), arXiv:1308.3432
    """

    name: ClassVar[str] = "st"
    rule = StraightThroughRule


@register_estimator("reinmax")
@dataclass(frozen=True)
class ReinMax(Relaxed):
    r"""ReinMax: a straight-through estimator of second order, exact for quadratic costs.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (2·J((p + b)/2) − ½·J(p))ᵀ ∇f(b) on the logits, J(p) = diag(p) − ppᵀ, or p(1 − p) for a
                  Bernoulli. Its mean replaces each f(e_i) − f(e_j) by ½(∇f(e_i) + ∇f(e_j))ᵀ(e_i − e_j)
    Requires:     as `st`
    Message:      as `st`
    Unbiased:     where f is at most quadratic in b, jointly over all sites under `reinmax`; else not. The
                  value returned, f(b), and the gradients of all else are
    Higher:       first derivatives only, an error says so
    Costs:        those of one draw
    Reference:    Liu, Dong, Liu, Yu & Gao (2023), arXiv:2304.08612
    """

    name: ClassVar[str] = "reinmax"
    rule = ReinMaxRule


@register_estimator("gumbel_softmax")
@dataclass(frozen=True)
class GumbelSoftmax(Tempered):
    r"""Gumbel-softmax (Concrete): the program runs on a relaxed draw, and the value returned is the relaxed cost.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         ∇_φ f(y), y = softmax((log p + g)/t), g Gumbel noise; for a Bernoulli
                  y = σ((log p/(1 − p) + l)/t), l logistic noise
    Requires:     Bernoulli or OneHotCategorical, inside Independent too; f defined between the
                  outcomes, and differentiable there along a path to every cost
    Message:      cotangent on y, [batch, ...] → cotangent on φ
    Unbiased:     for the gradient of the relaxed objective E f(y), of any order, not for that of
                  E f(b): the bias falls with t, while the variance grows
    Costs:        those of plain PyTorch; nothing is cut
    Reference:    Jang, Gu & Poole (2017), arXiv:1611.01144; Maddison, Mnih & Teh (2017),
                  arXiv:1611.00712

    What is returned is f(y), also under `torch.no_grad()` and where φ wants no gradient: a site under
    this estimator never draws b. To evaluate f(b), use ``compiled.with_estimator("infer")``.

    Args:
        temperature: t, a positive number (default 1, as in `torch.nn.functional.gumbel_softmax`), or a
            schedule: a function of the number of calls so far that gives one, such as
            ``lambda calls: max(0.5, 0.9999**calls)``. A call counts where the gradient of the site is
            wanted and the compiled object is not in `eval()` mode; others take the temperature of the
            last that counted. The count is saved with the compiled object.
    """

    name: ClassVar[str] = "gumbel_softmax"
    rule = GumbelSoftmaxRule
    temperature: Any = 1.0

    def without_gradient(self, site: SiteView) -> propagators.SitePropagator:
        free = replace(site, blocked=(), rough=())  # no gradient has to come through
        try:
            return propagators.plain(self.propagator(free)[0])
        except EstimatorError:  # what it has no rule for can still be drawn
            return propagators.Plain()


@register_estimator("st_gumbel")
@dataclass(frozen=True)
class StraightThroughGumbel(Tempered):
    r"""Straight-through Gumbel-softmax: hard draws, and the cotangent on the draw goes to its own relaxation.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (∂y/∂φ)ᵀ ∇f(b), y = softmax(z/t), b = the largest of z = log p + Gumbel noise; for a
                  Bernoulli y = σ(z/t), b = 1[z > 0], z = log p/(1 − p) + logistic noise
    Requires:     as `st`
    Message:      as `st`
    Unbiased:     no, not for linear f either. The value returned, f(b), and the gradients of all else are
    Higher:       first derivatives only, an error says so
    Costs:        those of `gumbel_softmax` and of the hard draw
    Reference:    Jang, Gu & Poole (2017), arXiv:1611.01144

    Args:
        temperature: t, a number or a schedule, as of `GumbelSoftmax`.
    """

    name: ClassVar[str] = "st_gumbel"
    rule = StraightThroughGumbelRule
    temperature: Any = 1.0


@register_estimator("gumbel_rao")
@dataclass(frozen=True)
class GumbelRao(Tempered):
    r"""Gumbel-Rao: `st_gumbel` with the mean Jacobian of K relaxations that give the same draw.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (1/K Σ_k ∂y_k/∂φ)ᵀ ∇f(b), y_k = softmax(z_k/t), z_k ~ p(z | b); the noise z_k − log p
                  counts as fixed in the derivative
    Requires:     as `st`
    Message:      as `st`
    Unbiased:     no: it has the mean of `st_gumbel`, and no more than its variance. The value returned,
                  f(b), and the gradients of all else are unbiased
    Higher:       first derivatives only, an error says so
    Costs:        one evaluation of f, K relaxations of the draw
    Reference:    Paulus, Maddison & Krause (2021), arXiv:2010.04838

    Args:
        samples: K. Ten (default) leave a tenth of the variance that averaging can remove.
        temperature: t, a number or a schedule, as of `GumbelSoftmax`. As the variance is less, it may be
            lower than that of `st_gumbel`.
    """

    name: ClassVar[str] = "gumbel_rao"
    rule = GumbelRaoRule
    samples: int = 10
    temperature: Any = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("samples", self.samples)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"samples": self.samples}

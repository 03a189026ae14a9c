"""`gumbel_softmax`: the program on relaxed draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from propc import propagators
from propc.errors import EstimatorError
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_path_from_draw
from propc.propagators.sites.temperature import Temperature


@register_estimator("gumbel_softmax")
@dataclass(frozen=True)
class GumbelSoftmax(Estimator):
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
    temperature: Any = 1.0

    def __post_init__(self) -> None:
        Temperature(self.temperature)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        found = require_path_from_draw(self.name, site)
        return propagators.GumbelSoftmaxRule(found, Temperature(self.temperature)), "asked for"

    def without_gradient(self, site: SiteView) -> propagators.SitePropagator:
        free = replace(site, blocked=(), rough=())  # no gradient has to come through
        try:
            return propagators.plain(self.propagator(free)[0])
        except EstimatorError:
            return propagators.Plain()

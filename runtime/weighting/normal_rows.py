"""Normal sites that draw together: one draw of noise for all of them, and one product for their score cotangents.

What a site adds to its loc does not depend on what sites before it have drawn; only pathwise cotangents have to go from
site to site. So the likelihood-ratio half of total propagation is done for several sites at once, and where tensors
are small, a step takes about as long as it has operations.

The noise becomes the score cotangents in place. Of sites that the reverse pass meets late it is not kept for that, but
drawn again from the generator's state: meanwhile nothing but that state is held, unless the noise is smaller.

The sites take a running sum of tokens along, which stands for a join of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.autograd.normal import lifted
from propc.runtime.autograd.tokens import applied, inlet
from propc.runtime.weighting.mix import mix
from propc.runtime.weighting.mix_on_cpu import known_variances, mix_known
from propc.util.torch_rng import STATE

if TYPE_CHECKING:
    from propc.propagators.sites.inverse_variance import InverseVariance
    from propc.propagators.sites.site_propagator import SiteContext

STRETCH = 16  # torch fills tensors with normal numbers in stretches of so many; a rest is drawn otherwise


class Together:
    """The noise of several sites in one call, and the score cotangents of its reverse pass. Made, it has drawn.

    Args:
        count: how many sites there are.
        groups: of rows, each with variances of its own.
        keep: whether the noise is kept for the first reverse pass, in place of being drawn again.
        scale: of all sites, [batch, ...]; takes no gradient.

    Attributes:
        token, delta: zeros, [batch] and of the shape of a draw.
    """

    def __init__(self, count: int, groups: int, keep: bool, scale: Tensor) -> None:
        self.count, self.groups, self.scale = count, groups, scale
        self._version = None if scale.is_inference() else scale._version
        self._state = torch.default_generator.get_state() if count * scale.nbytes > STATE else None
        noise = self._draw(None)
        self._kept = noise if keep or self._state is None else None
        self._noise = dict(enumerate(noise.unbind()))
        self._scores: dict[int, Score] = {}
        self._sent: Tensor | None = None
        self.token, self.delta = inlet(scale), inlet(scale, scale.dim())

    # Each site takes its own, and is the last to hold it; who comes again is given it anew.

    def noise(self, number: int) -> Tensor:
        """ε·scale of a site, [batch, ...]; not to be written into."""
        if number not in self._noise:
            self._noise = dict(enumerate(self._anew().unbind()))
        return self._noise.pop(number)

    def score(self, own: Seat, sent: Tensor) -> Score:
        """The score cotangent of a site that is sent a message, which all sites are sent; it may be written into.

        Raises:
            EstimatorError: the scale is not what it was when the sites drew.
        """
        if self._sent is not sent or own.number not in self._scores:
            if self._version is not None and self._version != self.scale._version:
                raise own.site.error(
                    "its scale was written into between the draw and the reverse pass",
                    "Go backward first, or write into a copy.",
                )
            self._sent, self._scores = sent, dict(enumerate(self._made(sent)))
        found = self._scores.pop(own.number)
        if not self._scores:
            self._sent = None
        return found

    def _draw(self, generator: torch.Generator | None) -> Tensor:
        """ε·scale of all sites, [sites, batch, ...]: what they would draw one behind the other."""
        noise = self.scale.new_empty((self.count, *self.scale.shape))
        for part in noise.unbind() if self.scale.numel() % STRETCH else (noise,):
            part.normal_(generator=generator)
        return noise.mul_(self.scale)

    def _anew(self) -> Tensor:
        """The same, for who asks to use up."""
        kept = self._kept
        if self._state is None:
            assert kept is not None
            return kept.clone()
        self._kept = None
        if kept is not None:
            return kept
        generator = torch.Generator()
        generator.set_state(self._state)
        return self._draw(generator)

    def _made(self, sent: Tensor) -> list[Score]:
        """The score cotangents of all sites, with the variances of all their groups."""
        noise, each, groups = self._anew(), lifted(sent, self.scale), self.groups
        try:
            noise.mul_(each)
        except RuntimeError:  # under vmap nothing is written in place
            noise = noise * each
        rows = noise.view(self.count * groups, noise.shape[1] // groups, -1)
        parts = rows.view(self.count, groups, *rows.shape[1:])
        return list(map(Score, noise.unbind(), parts.unbind(), known_variances(rows, groups)))


class Score(NamedTuple):
    """The score cotangent of a site on its loc.

    Attributes:
        whole: [batch, ...].
        groups: the same, [groups, rows, coordinates].
        variances: of the groups, as `mix_known` takes them.
    """

    whole: Tensor
    groups: Tensor
    variances: list[float] | None


class Seat(NamedTuple):
    """A site among those that draw together."""

    rule: InverseVariance
    site: SiteContext
    number: int


class NormalTogether(Function):
    """(loc, τ) → (x, τ, δ) as `NormalTotal`, at a site that draws together with others.

    What arrives at the token goes on to that of the sites before it, if there are any. The draw is not kept: in second
    derivatives, which alone read it, it is made again, and δ, zeros of its shape, stands for it in the graph.
    """

    @staticmethod
    def forward(
        ctx: Any, own: Seat, together: Together, loc: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        delta = together.delta.detach()
        ctx.own, ctx.together = own, together
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(delta, loc)
        return loc + together.noise(own.number), together.token.detach(), delta

    @staticmethod
    def backward(ctx: Any, path: Tensor | None, sent: Tensor | None, delta: Tensor | None) -> tuple[Any, ...]:
        own: Seat = ctx.own
        onwards = sent if ctx.needs_input_grad[3] else None
        if path is None or sent is None or delta is not None or torch.is_grad_enabled():
            return None, None, _with_care(ctx, path, sent, delta), onwards
        mixed, score, variances = ctx.together.score(own, sent)
        if variances is None or not mix_known(path.reshape(score.shape), score, variances):
            (mixed,) = mix(own.rule, own.site, [(path, mixed)])
        return None, None, mixed, onwards


def _with_care(ctx: Any, path: Tensor | None, sent: Tensor | None, delta: Tensor | None) -> Tensor:
    """The mixed cotangent, which can be differentiated again."""
    made, loc = ctx.saved_tensors
    own, together = ctx.own, ctx.together
    path = torch.zeros_like(loc) if path is None else path
    path = path if delta is None else path + delta
    sent = loc.new_zeros(loc.shape[:1]) if sent is None else sent
    offset = together.noise(own.number) + made - (loc - loc.detach())
    (mixed,) = mix(own.rule, own.site, [(path, offset * lifted(sent, together.scale))])
    return mixed


draw_together = applied(NormalTogether)

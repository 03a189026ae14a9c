"""How nodes read tokens, alone and joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from propc.runtime.gates import join


@dataclass(frozen=True, slots=True)
class Inlet:
    """How a token is read: its place, and what makes it fit the reader, None where it does."""

    read: int
    fitting: Callable[[Tensor], Tensor] | None = None

    def fit(self, token: Tensor) -> Tensor:
        """The token as the reader wants it."""
        return token if self.fitting is None else self.fitting(token)


@dataclass(frozen=True, slots=True)
class Joined:
    """Makes one token of several."""

    members: tuple[Inlet, ...]

    @property
    def plain(self) -> bool:
        """Whether what arrives at the join goes to every member as it is."""
        return all(member.fitting is None for member in self.members)

    def __call__(self, *tokens: Tensor) -> tuple[Tensor]:
        return (join([member.fit(token) for member, token in zip(self.members, tokens)]),)

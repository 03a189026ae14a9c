"""Several draws at a site: how many, and how what comes after them draws."""

from __future__ import annotations

from dataclasses import dataclass

from propc.errors import PropcValueError, message
from propc.types import Plate
from propc.util.configure import one_of


@dataclass(frozen=True)
class Samples:
    """Several draws of a site, in a plate.

    Attributes:
        count: how many; 1 is no plate.
        noise: whether later sites draw from ``"independent"`` or from ``"common"`` random numbers in each element.
        chunk: how many elements the program after the site holds at once; None is all.

    Raises:
        PropcValueError: a value that an option cannot have.
    """

    count: int = 1
    noise: str = "independent"
    chunk: int | None = None

    def __post_init__(self) -> None:
        one_of("noise", self.noise, ("independent", "common"))
        positive("samples", self.count)
        if self.chunk is not None:
            positive("chunk", self.chunk)

    def __repr__(self) -> str:
        plain = self.noise == "independent" and self.chunk is None
        return str(self.count) if plain else f"Samples({self.count}, noise={self.noise!r}, chunk={self.chunk})"

    def plate(self, name: str) -> Plate | None:
        """The plate of this name, if there are several draws."""
        return Plate(name, self.count, common=self.noise == "common", chunk=self.chunk) if self.count > 1 else None


def positive(option: str, value: object) -> None:
    """Check an option that counts something.

    Raises:
        PropcValueError: it is no positive integer.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PropcValueError(message(f"option {option}={value!r} must be a positive integer"))


ONE = Samples()

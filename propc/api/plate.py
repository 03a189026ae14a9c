"""`propc.plate`: a dimension of independent elements, declared by the user inside the program."""

from __future__ import annotations

from types import TracebackType

from propc.errors import PropcTypeError, PropcValueError, message
from propc.frontend import active_tracer
from propc.types import BATCH


class plate:
    """A dimension of independent elements, such as the data: ``with propc.plate("data", dim=1): ...``.

    Sites inside have a draw for each element, along dimension `dim` of the distribution's batch shape, and element i
    of all that they lead to inside depends on element i of theirs alone. `propc.cost` inside takes one cost for each
    element, [batch, n]; summed (or averaged, weighted) into what is returned, each element of a site hears of its own
    costs only, and not of those of the others, which lowers the variance of score-function estimators.

    Costs outside are sent to all elements, and a site outside hears of the costs of all elements, as ever.
    Several plates are nested, and stand right behind the batch: ``dim=1``, ``dim=2``. A plate at ``dim=0`` is the
    batch itself: the program may then return one number for all of it. Outside a compiled function a plate does
    nothing.

    Args:
        name: the same name is the same plate, of one size.
        dim: the dimension, of the batch shape of sites and of the shape of costs; a negative one counts from the end.

    Raises:
        PropcTypeError: a name that is no string, a dimension that is no integer.
        PropcValueError: a name that cannot be. Inside, at sites and costs: a dimension that they do not have, or a
            plate of two sizes, with the place of both.
    """

    def __init__(self, name: str, dim: int) -> None:
        if not isinstance(name, str) or not name:
            raise PropcTypeError(message(f"a plate's name must be a non-empty string; got {name!r}"))
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise PropcTypeError(
                message(f"the dimension of plate {name!r} must be an integer; got {dim!r}", "Such as dim=1.")
            )
        if name == BATCH:
            raise PropcValueError(
                message(f"a plate cannot be named {BATCH!r}", "The rows of the batch are independent already.")
            )
        self.name, self.dim = name, dim

    def __enter__(self) -> plate:
        tracer = active_tracer()
        if tracer is not None:
            tracer.plates.enter(self.name, self.dim)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        tracer = active_tracer()
        if tracer is not None:
            tracer.plates.leave()

    def __repr__(self) -> str:
        return f"propc.plate({self.name!r}, dim={self.dim})"

"""What measures estimators on a program of the user's: `propc.compare`, `propc.check`, `propc.signal_to_noise`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from propc.api.compile import compile
from propc.errors import PropcTypeError, message

if TYPE_CHECKING:
    from propc.diagnostics.comparison.comparison import Comparison


def compare(
    program: Any,
    /,
    *args: Any,
    estimators: Iterable[Any] | Mapping[str, Any],
    wrt: Any = None,
    repeats: int | str = 100,
    reference: Any = None,
    seed: int = 0,
    **kwargs: Any,
) -> Comparison:
    """Bias, variance, time and efficiency of estimators on a program of yours.

    Each estimator takes `repeats` steps, in turns, after a few that do not count. A step is a call and a
    backward pass from the sum of the means of all returned costs; a gradient that does not arrive is zero.
    Every estimator starts with a state of its own and learns nothing.

    Nothing of yours is changed: not ``.grad``, not what estimators have learned, not buffers that the program
    writes into, and not the random number generators, as it draws from `seed` alone.

    Args:
        program: a function, an `nn.Module` object, or either compiled. It keeps its passes; sites that ask for an
            estimator of their own get it.
        *args, **kwargs: of a call. An argument whose name is taken here is passed by position.
        estimators: names, estimator objects, mappings from site-name patterns, functions of the site; or a
            mapping from labels to these.
        wrt: in which tensors: all that want a gradient (arguments, parameters, closed-over tensors), or one by its
            name, or a tensor, or a list of these. A module's or container's name means all in it.
        repeats: gradients for each estimator, two or more; or the bias to be seen, as ``"5%"``: as many as it takes
            to find one of that size in 99 of 100 comparisons, 10 000 at most. The size is that of the bias of one
            coordinate, over the largest coordinate of the gradient.
        reference: the gradient to compare with: tensors, as many as `wrt` means, also by name; or an
            estimator, for ten times as many steps as `repeats`. By default the exact one where every
            site can be enumerated, else ten times as many steps of the most efficient among unbiased ones;
            each if a second unbiased estimator, as unlike it as can be, agrees with it in standard errors. Where it
            does not, there is no reference, the table says which two disagree, and nobody is called biased.
        seed: of all random numbers. In a turn all estimators have the same.

    Returns:
        a `Comparison`. An estimator that cannot work on this program has a row with the error's text.

    Raises:
        EstimatorError: none of the estimators works; their errors.
        PropcValueError: an unknown estimator, option or `wrt`; a reference of another shape; too few repeats, or no
            percentage.
        PropcTypeError: a program, estimators or repeats of the wrong kind.
    """
    from propc.diagnostics.comparison.compare import compared  # when asked for, as importing it takes a while

    return compared(_as_compiled(program), args, kwargs, estimators, wrt, repeats, reference, seed)


def check(
    program: Any,
    /,
    *args: Any,
    estimator: Any = None,
    wrt: Any = None,
    repeats: int | str = "10%",
    reference: Any = None,
    seed: int = 0,
    **kwargs: Any,
) -> dict[str, Any]:
    """Check that an estimator is unbiased on a program of yours, in a test: it passes, or raises.

    The mean of its gradients is compared with a reference, coordinate by coordinate, in standard errors. Chance alone
    fails 1 of 10 000 checks of unbiased estimators. Nothing of yours is changed, as under `propc.compare`, and all
    random numbers come from `seed`.

    Args:
        program: a function, an `nn.Module` object, or either compiled. It keeps its passes.
        *args, **kwargs: of a call. An argument whose name is taken here is passed by position.
        estimator: whatever `propc.compile` takes, estimators and propagators of yours too; by default that of the
            program.
        wrt: in which tensors, as of `propc.compare`.
        repeats: the bias of one coordinate that is to be found in 99 of 100 checks, in percent of the largest
            coordinate of the gradient; or a number of gradients, two or more. For a percentage as many are taken as
            needed, 10 000 at most.
        reference: the gradient: tensors, as many as `wrt` means, also by name; or a function that is called as the
            program is and returns the expected cost, to be differentiated; or the name of an estimator, or one, for
            as many steps. By default what two unbiased estimators agree on, as of `propc.compare`.
        seed: of all random numbers.

    Returns:
        the record of the estimator, as in `Comparison.rows`: among others ``mean``, a tensor of the shape of what
        `wrt` means or one for each name, ``bias``, ``stderr``, ``bias_se``, and ``missed``, the bias of a coordinate
        that could have been missed (``missed_share`` over the largest). Beside them ``repeats``, how many were taken;
        ``limit``, in standard errors; ``reference``, ``agreement`` and ``gradient``, as of `Comparison`.

    Raises:
        BiasError: it is biased; an AssertionError too. The message has each coordinate beyond the limit with its
            mean, the reference and the standard error; `coordinates` are their names.
        EstimatorError: it does not work on this program.
        NonFiniteError: gradients that are NaN or infinite.
        PropcValueError: two judges disagree, or none works, so that a reference is to be given; a bias of the size
            asked for cannot be seen with 10 000 gradients; arguments that `propc.compare` would refuse too.
        PropcTypeError: a program, an estimator or repeats of the wrong kind.
    """
    from propc.diagnostics.comparison.check import checked  # as in `compare`

    return checked(_as_compiled(program), args, kwargs, estimator, reference, wrt, repeats, seed)


def signal_to_noise(program: Any, /, *args: Any, repeats: int = 100, seed: int = 0, **kwargs: Any) -> dict[str, float]:
    """Signal-to-noise ratio of the gradient that each site sends to the tensors φ of its distribution.

    |E g|² / V[g], g the cotangent on all φ of the site that want a gradient, in one step from the sum of the means of
    the returned costs; V is summed over coordinates, and what noise adds to the squared mean is taken off.
    Where φ has a row for each sample, this is about a row: the gradient of a parameter that all B rows share has
    up to B times the ratio.

    Nothing of yours is changed, as under `propc.compare`.

    Args:
        program: a function, an `nn.Module` object, or either compiled.
        *args, **kwargs: of a call.
        repeats: steps, two or more.
        seed: of all random numbers.

    Returns:
        the ratio of each site by name, 0 where no signal is seen above the noise, infinite where there is no noise.
        Sites that send nothing are left out.

    Raises:
        PropcValueError: too few repeats; nothing wants a gradient.
    """
    from propc.diagnostics.signal_to_noise import measured  # as in `compare`

    return measured(_as_compiled(program), args, kwargs, repeats, seed)


def _as_compiled(program: Any) -> Any:
    """The program with the methods of a compiled one."""
    if isinstance(program, type):
        raise PropcTypeError(message(f"it needs a function or a module; got the class {program.__name__}"))
    return program if getattr(program, "_compiler", None) is not None else compile(program)

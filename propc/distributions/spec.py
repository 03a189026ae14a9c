"""Taking a `torch.distributions` object apart into tensors φ, and putting it together again.

Only tensors travel on edges, so a site holds the tensors of its distribution and a
`DistributionSpec`, the skeleton that turns them back into the distribution. It works
on the object's own attributes, hence on nested distributions (Independent,
TransformedDistribution, MixtureSameFamily) and on user-written subclasses, and it
skips the constructor: what a constructor computes is traced once, as part of the
segment before the site.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, OneHotCategorical, constraints
from torch.distributions.transforms import Transform

from propc.util.torch_private import BATCH_SHAPE, CATEGORICAL, VALIDATE_ARGS, FakeTensor, transform_attributes

Build = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Slot:
    """Place of φ[index] in the skeleton."""

    index: int


@dataclass(frozen=True)
class Constant:
    """Anything that is not a tensor; compared by value where it can be, else by identity."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return NotImplemented
        same = self.value is other.value
        return same or (type(self.value) is type(other.value) and _equal(self.value, other.value))

    def __hash__(self) -> int:
        return hash(type(self.value))


@dataclass(frozen=True)
class Skeleton:
    """An object, list, tuple or dict with the places of its tensors left open."""

    type: type
    items: tuple[tuple[Any, Slot | Constant | Skeleton], ...]


@dataclass(frozen=True)
class DistributionSpec:
    """A distribution without its tensors.

    Attributes:
        skeleton: the nested structure with φ left open.
        fields: name of each φ, such as ``loc`` or ``base_dist.loc``.
        event_dims: event dimensions of each φ, from its constraint; 0 where unknown.
        checks: (index of φ, constraint) for every parameter with a constraint.
        batch_shape, event_shape, has_rsample, text: as the distribution says.
    """

    skeleton: Skeleton
    fields: tuple[str, ...]
    event_dims: tuple[int, ...]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    has_rsample: bool
    text: str
    checks: tuple[tuple[int, constraints.Constraint | Relative], ...] = field(compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one draw."""
        return self.batch_shape + self.event_shape

    def builder(self, plates: Sequence[int] = ()) -> Callable[[Sequence[Tensor]], Distribution]:
        """A function from φ to the distribution; it runs no constructor.

        Args:
            plates: sizes of dimensions that all φ have in front of those of the program.
        """
        return _builder(_resized(self.skeleton, lambda shape: (*plates, *shape)) if plates else self.skeleton)

    def with_rows(self, rows: int) -> DistributionSpec:
        """The same with another length of the leading batch dimension."""
        batch, event = self.batch_shape, self.event_shape
        return replace(
            self,
            skeleton=_resized(self.skeleton, lambda shape: (rows, *shape[1:]) if shape else shape),
            batch_shape=(rows, *batch[1:]) if batch else batch,
            event_shape=event if batch else (rows, *event[1:]),
        )

    def batched(self, index: int, shape: Sequence[int]) -> bool:
        """Whether φ[index] of this shape has one value for every batch element."""
        lead = len(self.batch_shape)
        return tuple(shape[:lead]) == self.batch_shape and len(shape) - lead >= self.event_dims[index]

    def holds_parameters(self) -> bool:
        """Whether the distribution carries a network whose parameters want gradients."""
        return _holds_parameters(self.skeleton)

    def rows(self) -> int | None:
        """Length of the leading batch dimension; None for a single draw."""
        shape = self.batch_shape + self._reinterpreted()
        return shape[0] if shape else None

    def _reinterpreted(self) -> tuple[int, ...]:
        return self.event_shape if self.skeleton.type is Independent else ()

    @property
    def innermost(self) -> Skeleton:
        """The distribution inside any Independent."""
        skeleton = self.skeleton
        while issubclass(skeleton.type, Independent):
            skeleton = dict(skeleton.items)["base_dist"]
        return skeleton

    def normal(self) -> tuple[int, int] | None:
        """Indices of loc and scale where this is a Normal, inside Independent too."""
        if self.innermost.type is not Normal:
            return None
        parts: dict[Any, Any] = dict(self.innermost.items)
        return parts["loc"].index, parts["scale"].index

    def one_hot(self) -> int | None:
        """Index of the normalized logits where this is a OneHotCategorical that holds them, inside Independent too."""
        if self.innermost.type is not OneHotCategorical:
            return None
        classes: Any = dict(self.innermost.items)[CATEGORICAL]
        logits: Any = dict(classes.items).get("logits")
        return None if logits is None else logits.index


def _holds_parameters(skeleton: Any) -> bool:
    if isinstance(skeleton, Constant):
        return isinstance(skeleton.value, nn.Module) and any(p.requires_grad for p in skeleton.value.parameters())
    return isinstance(skeleton, Skeleton) and any(_holds_parameters(child) for _, child in skeleton.items)


@dataclass(frozen=True)
class Relative:
    """A constraint whose bounds are other parameters, such as low < high.

    Attributes:
        constraint: without its bounds.
        bounds: (attribute, index of φ) of each.
    """

    constraint: constraints.Constraint
    bounds: tuple[tuple[str, int], ...]

    def at(self, phi: Sequence[Tensor]) -> constraints.Constraint:
        """The constraint for these parameters."""
        made = copy.copy(self.constraint)
        for name, index in self.bounds:
            setattr(made, name, phi[index])
        return made


def _relative(constraint: constraints.Constraint, index: dict[int, int]) -> constraints.Constraint | Relative:
    """The constraint itself, or, where it holds parameters, one that says which."""
    held = {k: v for k, v in vars(constraint).items() if isinstance(v, Tensor)}
    if not held or any(id(v) not in index for v in held.values()):
        return constraint
    bare = copy.copy(constraint)
    for name in held:
        delattr(bare, name)
    return Relative(bare, tuple((name, index[id(v)]) for name, v in held.items()))


def take_apart(dist: Distribution) -> tuple[DistributionSpec, list[Tensor]]:
    """Split a distribution into its spec and its tensors φ (each once, in attribute order)."""
    stripper = _Stripper()
    skeleton, tensors, names = stripper.strip(dist, ""), stripper.tensors, stripper.names
    assert isinstance(skeleton, Skeleton)
    index = {id(t): i for i, t in enumerate(tensors)}
    checks: list[tuple[int, constraints.Constraint | Relative]] = []
    event_dims = [0] * len(tensors)
    wanted = not _lets_all_through(dist)
    for inner in nested(dist):
        for name, constraint in inner.arg_constraints.items():
            value = vars(inner).get(name)
            if isinstance(value, Tensor) and not constraints.is_dependent(constraint):
                event_dims[index[id(value)]] = constraint.event_dim
                if wanted:
                    checks.append((index[id(value)], _relative(constraint, index)))
    event_dims = [2 if "tril" in name else dims for name, dims in zip(names, event_dims)]
    spec = DistributionSpec(
        skeleton=skeleton,
        fields=tuple(names),
        event_dims=tuple(event_dims),
        batch_shape=tuple(dist.batch_shape),
        event_shape=tuple(dist.event_shape),
        has_rsample=bool(dist.has_rsample),
        text=describe(dist),
        checks=tuple(checks),
    )
    return spec, tensors


def strip(value: Any) -> tuple[list[Tensor], list[str], Build]:
    """The tensors inside any object, their names, and a function that puts it together again."""
    stripper = _Stripper()
    skeleton = stripper.strip(value, "")
    return stripper.tensors, stripper.names, _builder(skeleton)


def holds_live(value: Any) -> bool:
    """Whether any object holds a tensor, or a network with a parameter, that wants a gradient."""
    stripper = _Stripper()
    return _holds_parameters(stripper.strip(value, "")) or any(t.requires_grad for t in stripper.tensors)


def hidden_tensors(value: Any, seen: frozenset[int] = frozenset()) -> list[str]:
    """Names of the functions inside an object that close over a traced tensor, which cannot be taken out."""
    if isinstance(value, Tensor) or id(value) in seen:
        return []
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return [value.__name__] if any(isinstance(content, FakeTensor) for content in cells) else []
    seen |= {id(value)}
    return [name for _, child in _children(value) or () for name in hidden_tensors(child, seen)]


class _Stripper:
    """Takes an object apart; what holds no tensor, at any depth, stays as it is."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self._open: set[int] = set()  # objects that are being looked into, against cycles

    def strip(self, value: Any, path: str) -> Slot | Constant | Skeleton:
        if isinstance(value, Tensor):
            return self._slot(value, path)
        children = None if id(value) in self._open else _children(value)
        if children is None:
            return Constant(value)
        self._open.add(id(value))
        prefix = f"{path}." if path else ""
        items = tuple((key, self.strip(child, f"{prefix}{key}")) for key, child in children)
        self._open.remove(id(value))
        fixed = all(isinstance(child, Constant) for _, child in items)
        return (
            Constant(value)
            if fixed and not isinstance(value, (Distribution, Transform))
            else Skeleton(type(value), items)
        )

    def _slot(self, tensor: Tensor, path: str) -> Slot:
        for index, known in enumerate(self.tensors):
            if known is tensor:
                return Slot(index)
        self.tensors.append(tensor)
        self.names.append(path)
        return Slot(len(self.tensors) - 1)


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """The parts to look into, or None for a leaf."""
    if isinstance(value, Transform):
        return list(transform_attributes(value).items())
    if isinstance(value, Distribution):
        return list({**vars(value), VALIDATE_ARGS: False}.items())  # what is checked, the runtime checks
    if isinstance(value, torch.Size):
        return None
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, (type, ModuleType, FunctionType, torch.nn.Module)):
        return None
    return list(vars(value).items()) if hasattr(value, "__dict__") else None


def _builder(skeleton: Skeleton | Slot | Constant) -> Build:
    if isinstance(skeleton, Slot):
        index = skeleton.index
        return lambda phi: phi[index]
    if isinstance(skeleton, Constant):
        value = skeleton.value
        return lambda phi: value
    kind = skeleton.type
    parts = tuple((key, _builder(child)) for key, child in skeleton.items)
    if issubclass(kind, dict):
        return lambda phi: {key: build(phi) for key, build in parts}
    if issubclass(kind, (list, tuple)):
        make = kind._make if hasattr(kind, "_make") else kind
        return lambda phi: make([build(phi) for _, build in parts])
    fixed = {key: child.value for key, child in skeleton.items if isinstance(child, Constant)}
    moving = tuple((key, _builder(child)) for key, child in skeleton.items if not isinstance(child, Constant))

    def build(phi: Sequence[Tensor]) -> Any:
        made = object.__new__(kind)
        state = made.__dict__
        state.update(fixed)
        for key, part in moving:
            state[key] = part(phi)
        return made

    return build


def _resized(skeleton: Any, resize: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Any:
    """The skeleton with another batch shape of every distribution in it."""
    if not isinstance(skeleton, Skeleton):
        return skeleton
    items = []
    for key, child in skeleton.items:
        if key == BATCH_SHAPE and isinstance(child, Constant) and issubclass(skeleton.type, Distribution):
            child = Constant(torch.Size(resize(tuple(child.value))))
        items.append((key, _resized(child, resize)))
    return Skeleton(skeleton.type, tuple(items))


def nested(dist: Distribution) -> Iterator[Distribution]:
    """A distribution and all that are inside it."""
    yield dist
    for value in vars(dist).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Distribution):
                yield from nested(part)


def _lets_all_through(dist: Distribution) -> bool:
    """Whether the user has given validate_args=False, inside of Independent too."""
    if vars(dist).get(VALIDATE_ARGS) is False:
        return True
    return isinstance(dist, Independent) and _lets_all_through(dist.base_dist)


def describe(dist: Distribution) -> str:
    """A distribution in words, such as ``Normal(loc, scale)``."""
    inner = [describe(v) for v in vars(dist).values() if isinstance(v, Distribution)]
    if isinstance(dist, Independent):
        inner.append(str(dist.reinterpreted_batch_ndims))
    if not inner:
        inner = [k for k, v in vars(dist).items() if isinstance(v, Tensor) and k in dist.arg_constraints]
    return f"{type(dist).__name__}({', '.join(inner)})"


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # a user's __eq__ may do anything; unequal only costs a stage
        return False

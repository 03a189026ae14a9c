"""What a program reaches besides its tensor arguments: its closure, globals, object and modules.

Tensors among it are looked up at every call in the place where they were found, so that
`.to()`, `load_state_dict`, copies, `torch.func.functional_call` and rebinding work. Numbers,
flags, strings, functions and the structure around them are a part of the cache key:
changing one (``model.temperature = 0.5``, ``model.eval()``) compiles a new graph instead of
using a stale one. Of an object's plain attributes only those count whose name the
program's code mentions; a counter that it never reads costs no new graph.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from propc.frontend.environment.code_names import (
    LIBRARIES,
    LOOKUPS,
    PRIMITIVE,
    class_values,
    is_installed,
    methods,
    names_in,
    slots,
)
from propc.frontend.environment.snapshot import Attributes, Membership, State, Watch
from propc.util.estimator_state import EstimatorState
from propc.util.foreign_rng import is_generator
from propc.util.torch_private import BUFFERS, CHILDREN, FORWARD_HOOKS, PARAMETERS

Fetch = Callable[[Any], Any]
_MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}
_CACHED = type(functools.lru_cache(lambda: None))
# Longer lists and dictionaries count by identity and length: all that is shorter is looked through at every call, and
# what is so long is data, not settings.
_WIDEST = 4096
# Objects inside objects: modules of modules lie six or so deep; what goes further is a structure of data, such as a
# tree.
_DEEPEST = 12


@dataclass(frozen=True)
class Roots:
    """Where a program's look around begins.

    Attributes:
        fn: the user's function.
        owner: the module or object that it is called with, if any.
        statics: names and values of the arguments that are not tensors.
    """

    fn: Any
    owner: Any = None
    statics: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Place:
    """A list, dictionary, deque, set or cell that a program could write into, with a copy of its content.

    `owner` is the object whose attributes a dictionary holds, if it does.
    """

    path: str
    container: Any
    copy: Any
    owner: Any = None


@dataclass
class Surroundings:
    """What was found.

    Attributes:
        state: the part of the cache key.
        tensors: name and look-up (of the owner) of each tensor, by ``id``.
        places: where a program could write.
        generators: of random numbers, Python's and NumPy's, with their names.
        caches: functions behind `functools.lru_cache`, in which a trace would leave its tensors.
        codes, types: of the functions and objects met.
    """

    state: list[Any] = field(default_factory=list)
    tensors: dict[int, tuple[str, Fetch]] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    generators: list[tuple[str, Any]] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)
    codes: set[CodeType] = field(default_factory=set)
    types: set[type] = field(default_factory=set)


@dataclass
class Attention:
    """What of its surroundings a program's graphs depend on.

    Attributes:
        names: that its code mentions.
        written: places, and keys in them, into which it wrote while it was traced; such a
            counter or log is no reason to trace again.
    """

    names: frozenset[str] = frozenset()
    written: set[tuple[int, Any]] = field(default_factory=set)


def look_around(roots: Roots, attention: Attention) -> Surroundings:
    """Everything that the program reaches, for tracing it."""
    return _Collection(attention, detailed=True).run(roots)


def watch(roots: Roots, attention: Attention) -> Watch:
    """The plain values that the program reaches, for the cache key, and the places where they stand."""
    walk = _Collection(attention, detailed=False)
    state = walk.run(roots).state
    walk.watch.state = State(tuple(state))
    return walk.watch


def changes(place: Place) -> list[tuple[Any, Any]]:
    """Key and value of what has been written into a place; the key of a cell, and of a whole list, is None."""
    now, before = place.container, place.copy
    if isinstance(now, set):
        return [] if now == before else [(None, now)]
    if isinstance(now, CellType):
        return [(None, now.cell_contents)] if now != CellType() and now.cell_contents is not before else []
    if isinstance(now, dict):
        return [(key, value) for key, value in now.items() if value is not before.get(key)]
    same = len(now) == len(before) and all(a is b for a, b in zip(now, before))
    return [] if same else [(None, now)]


def mentioned_names(roots: Roots) -> frozenset[str]:
    """Every name in the code of the functions and methods that the program can call."""
    names: frozenset[str] = frozenset()
    while True:
        found = look_around(roots, Attention(names))
        grown = names.union(*map(names_in, found.codes))
        for parent, _, function in (each for kind in found.types for each in methods(kind, names)):
            mentioned = names_in(inspect.unwrap(function).__code__)
            grown |= mentioned - LOOKUPS if is_installed(parent.__module__) else mentioned
        if grown == names:
            return names
        names = grown


class _Collection:
    """One walk; `detailed` also records what only a trace needs."""

    def __init__(self, attention: Attention, detailed: bool) -> None:
        self.found, self.detailed, self.watch = Surroundings(), detailed, Watch()
        self.names, self.written = attention.names, attention.written
        self.wanted = self.names.union(["__wrapped__"])
        self.looks_up = not self.names.isdisjoint(LOOKUPS)
        self.seen: set[int] = set()
        self.classes: set[type] = set()
        self.numbers: dict[int, int] = {}
        self.pinned = False  # tensors count by identity: those of arguments, which are not looked up again

    def run(self, roots: Roots) -> Surroundings:
        if roots.owner is not None:
            self.visit(roots.owner, "", _itself, 0)
        self.visit(roots.fn, "", _always(roots.fn), 0)
        self.pinned = True
        for name, value in roots.statics:
            if not isinstance(value, PRIMITIVE):
                self.visit(value, name, _always(value), 0)
        return self.found

    def visit(self, value: Any, path: str, fetch: Fetch, depth: int) -> None:
        state = self.found.state
        if isinstance(value, Tensor):
            self.found.tensors.setdefault(id(value), (path, fetch))
            number = self.numbers.setdefault(id(value), len(self.numbers))  # which places hold one and the same
            state += (Tensor, id(value) if self.pinned else number)
            return
        if isinstance(value, PRIMITIVE):
            state.append(type(value))
            state.append(value)
            return
        if isinstance(value, EstimatorState):
            return
        if isinstance(value, (type, ModuleType)):
            state.append(value)
            if is_installed(value.__name__ if isinstance(value, ModuleType) else value.__module__):
                return
        if id(value) in self.seen or depth > _DEEPEST:
            return
        self.seen.add(id(value))
        state.append(type(value))
        for name, child, read in self.parts(value, path):
            self.visit(child, name, _then(fetch, read) if self.detailed else fetch, depth + 1)

    def parts(self, value: Any, path: str) -> Iterator[tuple[str, Any, Fetch]]:
        """Name, value and reader of what an object holds."""
        if isinstance(value, (FunctionType, MethodType)) and getattr(value, "_propc_opaque", False):
            self.found.state.append(value)  # a black box: not traced, so what it reaches is no part of the graph
            return iter(())
        if isinstance(value, FunctionType):
            return self.function(value, path)
        if isinstance(value, MethodType):
            both = ("__self__", path, value.__self__), ("__func__", path, value.__func__)
            return ((name, child, _attribute(key)) for key, name, child in both)
        if isinstance(value, functools.partial):
            inside = (("func", value.func), ("args", value.args), ("keywords", value.keywords))
            return ((_joined(path, key) if key != "func" else path, child, _attribute(key)) for key, child in inside)
        if isinstance(value, (dict, MappingProxyType)):
            return self.items(value, path, value.items())
        if isinstance(value, (list, tuple, deque)):
            return self.items(value, path, enumerate(value))
        if isinstance(value, (set, frozenset)):
            return self.members(value, path)
        if self.detailed and is_generator(value):
            self.found.generators.append((path, value))
        if _is_array(value) and value.size <= _WIDEST and value.dtype.kind != "O":
            return self.content(value.tobytes)
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return self.module(value, path)
        if isinstance(value, (type, ModuleType)):
            return self.scope(value, path)
        if isinstance(value, _CACHED):
            self.found.caches.append(value)
            return iter([(path, value.__wrapped__, _attribute("__wrapped__"))])
        if isinstance(value, torch.jit.ScriptModule) or (callable(value) and type(value).__module__ in LIBRARIES):
            self.found.state.append(id(value))
            return iter(())
        return self.attributes(value, path)

    def content(self, read: Callable[[], Any]) -> Iterator[tuple[str, Any, Fetch]]:
        """What counts by its content, which is read anew at every call."""
        known = read()
        self.found.state.append(known)
        self.watch.contents.append((read, known))
        return iter(())

    def scope(self, scope: Any, path: str) -> Iterator[tuple[str, Any, Fetch]]:
        """What a program mentions of a module, or of a class that it calls or reads."""
        if isinstance(scope, type):
            yield from self.of_class(scope, path, ())
            return
        for name, child in list(vars(scope).items()):
            if name in self.names and not self.ignores(vars(scope), name, child):
                self.watch.entries.append((vars(scope), name, child))
                yield _joined(path, name), child, _attribute(name)

    def of_class(self, kind: Any, path: str, own: Container[str]) -> Iterator[tuple[str, Any, Fetch]]:
        """The plain values of a class that `own` does not hide, and the functions behind its methods."""
        if self.detailed:
            self.found.types.add(kind)
        for name in class_values(kind):
            if name in self.names and name not in own:
                self.watch.entries.append((Attributes(kind), name, getattr(kind, name)))
                yield _joined(path, name), getattr(kind, name), _attribute(name)
        if kind not in self.classes:
            self.classes.add(kind)
            for parent, name, function in methods(kind, self.names):
                if not is_installed(parent.__module__):
                    self.watch.entries.append((vars(parent), name, vars(parent)[name]))
                    yield "", function, _always(function)

    def function(self, fn: FunctionType, path: str) -> Iterator[tuple[str, Any, Fetch]]:
        self.found.state.append(fn.__code__)
        if (fn.__globals__.get("__name__") or "").split(".")[0] in LIBRARIES:  # `wraps` writes over `__module__`
            inner = getattr(fn, "__wrapped__", None)
            if inner is not None:
                yield path, inner, _attribute("__wrapped__")
            return
        self.found.codes.add(fn.__code__)
        prefix = f"{path}." if path else ""
        scope = dict(zip(fn.__code__.co_freevars, fn.__closure__ or ()))
        for name, cell in scope.items():
            if cell != CellType() and not self.ignores(cell, None, cell.cell_contents):  # assigned
                self.place(prefix + name, cell, cell.cell_contents)
                self.watch.cells.append((cell, cell.cell_contents))
                yield prefix + name, cell.cell_contents, _cell(cell)
        if not is_installed(fn.__globals__.get("__name__") or ""):
            self.place("", fn.__globals__)
        for name in names_in(fn.__code__):
            if name in fn.__globals__ and not self.ignores(fn.__globals__, name, fn.__globals__[name]):
                self.watch.entries.append((fn.__globals__, name, fn.__globals__[name]))
                yield prefix + name, fn.__globals__[name], _global(name)
        yield from (
            (prefix + "defaults", part, _attribute(key))
            for key, part in (("__defaults__", fn.__defaults__), ("__kwdefaults__", fn.__kwdefaults__))
            if part
        )

    def items(self, value: Any, path: str, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any, Fetch]]:
        if (id(value), None) in self.written:
            return
        self.found.state.append(len(value))
        self.watch.sizes.append((value, len(value)))
        if len(value) > _WIDEST:
            self.found.state.append(id(value))
            return
        self.place(path, value)
        for key, child in items:
            if self.ignores(value, key, child):
                continue
            self.watch.entries.append((value, key, child))
            if not isinstance(key, int):
                self.found.state.append(key)
            yield f"{path}[{key!r}]", child, itemgetter(key)

    def members(self, value: Any, path: str) -> Iterator[tuple[str, Any, Fetch]]:
        self.place(path, value)
        if (id(value), None) not in self.written:
            plain = frozenset(each for each in value if isinstance(each, PRIMITIVE))
            self.found.state.append((len(value), plain))
            self.watch.sizes.append((value, len(value)))
            self.watch.entries += [(Membership(value), each, True) for each in plain]
        return iter(())

    def module(self, module: nn.Module, path: str) -> Iterator[tuple[str, Any, Fetch]]:
        own = module.__dict__
        for group in (PARAMETERS, BUFFERS, CHILDREN):
            self.place(path, own[group], owner=module)
            self.watch.sizes.append((own[group], len(own[group])))
            for name, child in own[group].items():
                self.watch.entries.append((own[group], name, child))
                yield _joined(path, name), child, _member(group, name)
        self.found.state.extend((module.training, *(each for hooks in FORWARD_HOOKS for each in own[hooks])))
        if "training" in own:  # not in what torch.compile makes of a module
            self.watch.entries.append((own, "training", own["training"]))
        self.watch.sizes += [(own[hooks], len(own[hooks])) for hooks in FORWARD_HOOKS]
        yield from self.attributes(module, path)

    def attributes(self, value: Any, path: str) -> Iterator[tuple[str, Any, Fetch]]:
        if self.detailed:
            self.found.caches += [c for k in type(value).__mro__ for c in vars(k).values() if isinstance(c, _CACHED)]
        kind: Any = type(value)
        own = getattr(value, "__dict__", {})
        if not (own or slots(kind) or hasattr(value, "__dict__")):
            self.found.state.append(id(value))
            return
        self.place(path, own, owner=value)
        self.watch.sizes.append((own, len(own)))
        for container, name, child in (*((own, *item) for item in own.items()), *_slotted(value)):
            if self.wants(value, name) and not self.ignores(container, name, child):
                self.watch.entries.append((container, name, child))
                yield _joined(path, name), child, _attribute(name)
        yield from self.of_class(kind, path, own)

    def wants(self, owner: Any, name: str) -> bool:
        """Whether an attribute counts: the program's code mentions it, or looks attributes up by other names."""
        if (isinstance(owner, nn.Module) and name in _MODULE_INTERNALS) or name.startswith("_propc"):
            return False
        return name in self.wanted or (self.looks_up and not type(owner).__module__.startswith("propc."))

    def ignores(self, container: Any, key: Any, value: Any) -> bool:
        """Whether the program itself writes here; a tensor counts all the same."""
        return (id(container), key) in self.written and not isinstance(value, Tensor)

    def place(self, path: str, container: Any, content: Any = None, owner: Any = None) -> None:
        """Note what a trace could write into, and what is in it now."""
        if self.detailed and isinstance(container, (list, dict, deque, set, CellType)):
            copy = content if isinstance(container, CellType) else container.copy()
            self.found.places.append(Place(path, container, copy, owner))


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _slotted(value: Any) -> Iterator[tuple[Attributes, str, Any]]:
    """The attributes of an object that stand in slots."""
    kind: Any = type(value)
    for name in slots(kind):
        if hasattr(value, name):
            yield Attributes(value), name, getattr(value, name)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _itself(owner: Any) -> Any:
    return owner


def _always(value: Any) -> Fetch:
    return lambda _: value


def _cell(cell: CellType) -> Fetch:
    return lambda _: cell.cell_contents


def _global(name: str) -> Fetch:
    return lambda fn: fn.__globals__[name]


def _member(group: str, name: str) -> Fetch:
    return lambda module: module.__dict__[group][name]


def _then(first: Fetch, then: Fetch) -> Fetch:
    return lambda owner: then(first(owner))


def _attribute(name: str) -> Fetch:
    return lambda value: getattr(value, name)

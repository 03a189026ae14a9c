"""What a program reaches beside its arguments is looked up at every call: nothing in a graph goes stale."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Normal

import propc

B = 5
RATE = 2.0
WEIGHT = torch.ones(B)


def param(shift: float = 0.0) -> Tensor:
    return (torch.linspace(0.3, 0.8, B) + shift).requires_grad_()


def same(plain: Callable[..., Any], compiled: Callable[..., Any], *args: Tensor) -> None:
    """Equal values and gradients from one seed."""
    found = []
    for fn in (plain, compiled):
        torch.manual_seed(3)
        value = fn(*args)
        wanted = list({id(t): t for t in args if t.requires_grad}.values())
        found.append((value, *torch.autograd.grad(value.sum(), wanted)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def pathwise(fn: Any) -> Any:
    return propc.compile(fn, estimator="rp")


def draw(x: Tensor) -> Tensor:
    return propc.sample(Normal(x, 0.5), "x").square()


# -- one tensor in two places -------------------------------------------------------------------


def test_a_tensor_passed_twice_is_two_arguments() -> None:
    def program(a: Tensor, b: Tensor) -> Tensor:
        return draw(a * b.sin())

    compiled, a = pathwise(program), param()
    same(program, compiled, a, a)
    same(program, compiled, a, param(1.0))
    same(program, compiled, param(1.0), a)
    assert compiled.compiler.traces == 1


def test_a_tensor_passed_and_held_is_two_tensors() -> None:
    held = param()

    def program(a: Tensor) -> Tensor:
        return draw(a * held.sin())

    compiled = pathwise(program)
    same(program, compiled, held)
    same(program, compiled, param(1.0))


def test_writing_into_a_tensor_passed_twice() -> None:
    def program(a: Tensor, b: Tensor) -> Tensor:
        b.add_(1)
        return a * b + a

    one, other = torch.ones(B), torch.ones(B)
    assert torch.equal(pathwise(program)(one, one), program(other, other))


# -- plain values -------------------------------------------------------------------------------


class Config:
    rate = 2.0
    weight = torch.ones(B)
    layer: Any = nn.Tanh


class Slotted:
    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 2.0


@dataclass(slots=True)
class Record:
    rate: float = 2.0


class Looked:
    """Reads its attributes in a dictionary of its own."""

    def __init__(self) -> None:
        self.values = {"rate": 2.0}

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["values"][name]


def _module() -> Any:
    made = types.ModuleType("settings_of_a_test")
    exec("RATE = 2.0\ndef scaled(x): return x * RATE\n", made.__dict__)
    return made


def _class_attribute() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    kind = type("Own", (Config,), {"rate": 2.0})
    return lambda a: draw(a * kind.rate), lambda: setattr(kind, "rate", 3.0)


def _inherited() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    kind = type("Own", (Config,), {"rate": 2.0})
    child = type("Heir", (kind,), {})
    return lambda a: draw(a * child.rate), lambda: setattr(kind, "rate", 3.0)


def _class_in_a_class() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    kind = type("Own", (Config,), {"layer": nn.Tanh})
    return lambda a: draw(kind.layer()(a)), lambda: setattr(kind, "layer", nn.ReLU)


def _class_in_a_cell() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    kind: Any = nn.Tanh

    def rebind() -> None:
        nonlocal kind
        kind = nn.ReLU

    return lambda a: draw(kind()(a)), rebind


def _attribute_of_a_module() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    settings = _module()
    return lambda a: draw(a * settings.RATE), lambda: setattr(settings, "RATE", 3.0)


def _function_of_a_module() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    settings = _module()
    return lambda a: draw(settings.scaled(a)), lambda: setattr(settings, "RATE", 3.0)


def _method_replaced() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    kind: Any = type("Own", (), {"scaled": lambda self, x: x})
    owner = kind()
    return lambda a: draw(owner.scaled(a)), lambda: setattr(kind, "scaled", lambda self, x: x * 3)


def _attribute(owner: Any) -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    return lambda a: draw(a * owner.rate), lambda: setattr(owner, "rate", 3.0)


def _looked_up() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    owner = Looked()
    return lambda a: draw(a * owner.rate), lambda: owner.values.update(rate=3.0)


def _by_name() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    owner, which = types.SimpleNamespace(rate=2.0), ["rate"]
    return lambda a: draw(a * getattr(owner, which[0])), lambda: setattr(owner, "rate", 3.0)


def _all_attributes() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    owner = types.SimpleNamespace(rate=2.0)
    return lambda a: draw(a * sum(vars(owner).values())), lambda: setattr(owner, "rate", 3.0)


def _set() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    active = {"a"}
    return lambda a: draw(a * (3 if "b" in active else 2)), lambda: active.add("b")


def _deque() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    recent = deque([1.0, 2.0], maxlen=2)
    return lambda a: draw(a * sum(recent)), lambda: recent.append(3.0)


def _view_of_a_dictionary() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    table = {"rate": 2.0}
    view = MappingProxyType(table)
    return lambda a: draw(a * view["rate"]), lambda: table.update(rate=3.0)


def _array() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    array = np.ones(3)
    return lambda a: draw(a * float(array[1])), lambda: array.__setitem__(1, 3.0)


CHANGES: dict[str, Callable[[], tuple[Callable[..., Tensor], Callable[[], Any]]]] = {
    "class attribute": _class_attribute,
    "inherited class attribute": _inherited,
    "class held by a class": _class_in_a_class,
    "class held by a closure": _class_in_a_cell,
    "attribute of a module": _attribute_of_a_module,
    "global of a function of a module": _function_of_a_module,
    "method replaced": _method_replaced,
    "slot": lambda: _attribute(Slotted()),
    "slot of a dataclass": lambda: _attribute(Record()),
    "__getattr__": _looked_up,
    "getattr": _by_name,
    "vars": _all_attributes,
    "set": _set,
    "deque": _deque,
    "view of a dictionary": _view_of_a_dictionary,
    "NumPy array": _array,
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_value_is_seen(case: str) -> None:
    program, change = CHANGES[case]()
    compiled = pathwise(program)
    same(program, compiled, param())
    before = compiled.compiler.traces
    compiled(param())
    assert compiled.compiler.traces == before  # and nothing is traced anew without a change
    change()
    same(program, compiled, param())
    assert compiled.compiler.traces == before + 1


def test_an_array_passed_and_written_is_seen() -> None:
    def program(a: Tensor, array: np.ndarray) -> Tensor:
        return draw(a * float(array[0]))

    compiled, array = pathwise(program), np.ones(3)
    for value in (1.0, 3.0):
        array[0] = value
        torch.manual_seed(1)
        expected = program(param(), array)
        torch.manual_seed(1)
        assert torch.equal(compiled(param(), array), expected)


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * RATE * WEIGHT


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return draw(self.inner(x) + self._scaled(x) + self.offset)

    def _scaled(self, x: Tensor) -> Tensor:
        return x * WEIGHT

    @property
    def offset(self) -> float:
        return RATE


def test_globals_that_only_methods_and_submodules_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Outer()
    compiled = pathwise(model)
    same(model, compiled, param())
    monkeypatch.setitem(globals(), "RATE", 3.0)
    same(model, compiled, param())
    monkeypatch.setitem(globals(), "WEIGHT", torch.full_like(WEIGHT, 4.0))  # a tensor: looked up, not traced again
    same(model, compiled, param())
    assert compiled._compiler().traces == 2


def test_a_cache_keeps_no_traced_tensor() -> None:
    @functools.lru_cache
    def table(n: int) -> Tensor:
        return torch.arange(float(n))

    class Tables:
        @functools.lru_cache  # noqa: B019
        def table(self, n: int) -> Tensor:
            return torch.arange(float(n))

    tables = Tables()

    def program(a: Tensor) -> Tensor:
        return draw(a * table(B) * tables.table(B))

    compiled = pathwise(program)
    same(program, compiled, param())
    compiled(param()[None])
    compiled(param().detach())
    assert not isinstance(table(B), FakeTensor)
    assert not isinstance(tables.table(B), FakeTensor)

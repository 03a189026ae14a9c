"""What estimators keep from call to call: an `nn.Module`, so that it saves, loads and moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from propc.util.torch_private import CHILDREN, StateDictModule


class EstimatorState(StateDictModule):
    """Modules of state by key, made when a graph first needs them.

    Loading a state dict saved before the first call, or from the plain model, is no error:
    what is missing starts afresh, what is not yet made waits for its owner.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self._waiting: dict[str, dict[str, Any]] = {}

    def part(self, key: str, make: Callable[[], nn.Module | None]) -> nn.Module:
        """The module under this key, made at the first request."""
        name = key.replace(".", "/")  # a module's name may hold no dot
        if name not in self.parts:
            module = make()
            assert module is not None
            module.train(self.training)
            waiting = self._waiting.pop(name, None)
            if waiting is not None:
                module.load_state_dict(waiting)
            self.parts[name] = module
        return self.parts[name]

    def saved(self, destination: dict[str, Any], prefix: str) -> None:
        for name, waiting in self._waiting.items():
            destination.update({f"{prefix}parts.{name}.{rest}": value for rest, value in waiting.items()})

    def loading(self, state: dict[str, Any], prefix: str) -> None:
        mine = f"{prefix}parts."
        for key in [k for k in state if k.startswith(mine)]:
            name, rest = key[len(mine) :].split(".", 1)
            if name not in self.parts:
                value = state.pop(key)
                self._waiting.setdefault(name, {})[rest] = value.clone() if isinstance(value, Tensor) else value
        for name in self.parts:
            if not any(k.startswith(f"{mine}{name}.") for k in state):
                for rest, value in self.parts[name].state_dict().items():
                    state[f"{mine}{name}.{rest}"] = value


STATE = "estimator_state"  # its name in a compiled module


@contextmanager
def without_state(module: Any) -> Iterator[None]:
    """Take the estimators' state out of a compiled module while its own code runs, which may visit its children."""
    modules = vars(module)[CHILDREN] if isinstance(module, nn.Module) else {}
    state = modules.pop(STATE, None)
    try:
        yield
    finally:
        if state is not None:
            modules[STATE] = state

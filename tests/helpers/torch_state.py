"""What of torch's global state a program can see changed: settings, and functions patched."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

DISTRIBUTIONS = [d for d in vars(torch.distributions).values() if isinstance(d, type)]
CLASSES = [*DISTRIBUTIONS, torch.nn.Module, torch.Tensor, torch.Generator, torch.fx.Tracer]
MODULES = [torch, torch.nn.functional, torch.distributions.kl, torch.fx.proxy]


def settings() -> dict[str, Any]:
    """The global switches of torch."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "Distribution._validate_args": torch.distributions.Distribution._validate_args,
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
    }


def functions() -> dict[str, Any]:
    """Every function of the classes and modules that a tracer may be tempted to patch."""
    owners = {f"{c.__module__}.{c.__qualname__}": c for c in CLASSES} | {m.__name__: m for m in MODULES}
    return {
        f"{owner}.{name}": value
        for owner, namespace in owners.items()
        for name, value in vars(namespace).items()
        if callable(value) or isinstance(value, (classmethod, property, staticmethod))
    }


def snapshot() -> dict[str, Any]:
    """Settings and functions now."""
    return settings() | functions()


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs, sorted: a setting, a function replaced or removed, a constructor added."""
    changed = [name for name, value in before.items() if not _same(value, after.get(name))]
    added = [name for name in after if name not in before and name.endswith((".__new__", ".__init__"))]
    return sorted(changed + added)


def restore(before: dict[str, Any]) -> None:
    """Set the settings back that can be, so that one bad test does not spoil the next."""
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["grad mode"])
    torch.set_anomaly_enabled(before["anomaly mode"])
    torch.use_deterministic_algorithms(before["deterministic algorithms"])
    torch.set_num_threads(before["threads"])
    torch.distributions.Distribution._validate_args = before["Distribution._validate_args"]


def _same(a: Any, b: Any) -> bool:
    return a is b if callable(a) else type(a) is type(b) and bool(a == b)

"""The guard of conftest.py sees what it must see."""

from __future__ import annotations

import pytest
import torch
import torch_state
from torch.distributions import Distribution


def test_sees_nothing_where_nothing_changed() -> None:
    assert torch_state.changes(torch_state.snapshot(), torch_state.snapshot()) == []


def test_sees_a_setting() -> None:
    before = torch_state.snapshot()
    with torch.no_grad():
        assert torch_state.changes(before, torch_state.snapshot()) == ["grad mode"]


def test_sees_patched_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch_state.snapshot()
    monkeypatch.setattr(torch, "randn", torch.rand)
    monkeypatch.setattr(Distribution, "log_prob", lambda self, value: value)
    names = ["torch.distributions.distribution.Distribution.log_prob", "torch.randn"]
    assert torch_state.changes(before, torch_state.snapshot()) == names


def test_restores_settings() -> None:
    before = torch_state.settings()
    torch.set_default_dtype(torch.float32)
    Distribution.set_default_validate_args(False)
    torch_state.restore(before)
    assert torch_state.settings() == before

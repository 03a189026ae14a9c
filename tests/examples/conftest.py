"""The modules of the examples."""

import importlib

import pytest
import torch
from example_runs import EXAMPLES


@pytest.fixture
def example(monkeypatch):
    """Imports an example, or a module of its folder, in float32, for which they are written."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield importlib.import_module
    torch.set_default_dtype(before)

"""Private names of torch stand in one module, so that a new version of torch is one place to look at."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from propc.util import torch_private

ROOT = Path(__file__).parents[2]
HOME = ROOT / "propc" / "util" / "torch_private.py"
FOLDERS = ("propc", "passes", "runtime", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PYTHONS = frozenset({"_fields", "_getframe", "_make", "_operator", "_replace"})  # names of the standard library
PRIVATE = re.compile(r"_[A-Za-z]\w*")


def is_private(name: str) -> bool:
    """Whether a name or dotted path has a part with one leading underscore."""
    return any(PRIVATE.fullmatch(part) is not None for part in name.split("."))


def own_names(tree: ast.AST) -> Iterator[str]:
    """What a module defines: functions, classes, variables, attributes of `self`, slots."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id == "__slots__":
                yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """The strings that are statements."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def torch_names(tree: ast.AST, own: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Private names that are not propc's own: (line, what) of imports, attributes and words in strings."""
    texts = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.startswith("torch.")]
        elif isinstance(node, ast.Attribute):
            found = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in texts:
            found = [word for word in node.value.split() if re.fullmatch(r"[\w.]+", word)]
        else:
            continue
        for name in found:
            known = name in own or name in PYTHONS or name.startswith(("_propc", "propc."))
            if is_private(name) and not known:
                yield node.lineno, name


@cache
def trees() -> dict[Path, ast.AST]:
    """All modules but the one home of private names."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.resolve() != HOME}


@cache
def propcs() -> frozenset[str]:
    """The private names of propc itself, but for those that torch has too."""
    torchs = {name for _, name in torch_names(ast.parse(HOME.read_text(encoding="utf-8")), frozenset())}
    return frozenset(name for tree in trees().values() for name in own_names(tree)) - torchs


@pytest.mark.slow
def test_no_private_name_of_torch_outside_of_its_module() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in trees().items()
        for line, name in torch_names(tree, propcs())
    ]
    assert not found, "import them from propc.util.torch_private:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import torch.utils._pytree as pytree",
        "from torch._subclasses.fake_tensor import FakeTensor",
        "from torch.distributions.transforms import _InverseTransform",
        "from torch import _C",
        "import torch; torch._C.DisableTorchFunction()",
        "version = tensor._version",
        "tensor.untyped_storage()._cdata",
        "fake._is_param = True",
        "super()._save_to_state_dict(a, b, c)",
        "getattr(dist, '_batch_shape')",
        "import sys; 'torch._dynamo' in sys.modules",
        "NAMES = 'size dim _set_grad_enabled'.split()",
    ],
)
def test_a_private_name_is_found(code: str) -> None:
    assert list(torch_names(ast.parse(code), propcs()))


@pytest.mark.parametrize(
    "code",
    ["self._held = 1", "import sys; sys._getframe(1)", "'''Of torch._C.'''", "t.__dict__", "t.add_(1)", "'{a}_'"],
)
def test_other_names_are_none_of_torch(code: str) -> None:
    assert not list(torch_names(ast.parse(code), propcs()))


def test_every_name_is_used() -> None:
    used = {
        word
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == torch_private.__name__
        for word in (alias.name for alias in node.names)
    }
    assert sorted(used) == sorted(torch_private.__all__)


@pytest.mark.slow
def test_importing_propc_loads_no_more_of_torch() -> None:
    """Dynamo and inductor take seconds to import."""
    code = (
        f"import sys, torch; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules); import propc; "
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('torch.')))"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr

"""What is installed: the linked folders, the types, documented names, and a quiet import."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import propc

ROOT = Path(__file__).parents[2]
FOLDERS = {"propc": "propc", "propc.passes": "passes", "propc.runtime": "runtime"}


def packages_on_disk() -> list[str]:
    """Every folder with an `__init__.py`, by the name it is imported under."""
    return sorted(
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    )


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees only what is installed."""
    return subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)


def test_every_package_is_found() -> None:
    setuptools = pytest.importorskip("setuptools")
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = setuptools.find_packages(str(ROOT), **project["tool"]["setuptools"]["packages"]["find"])
    assert sorted(found) == packages_on_disk()


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_folder_is_linked_into_the_package(name: str) -> None:
    link = ROOT / "propc" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def test_the_oldest_versions_that_are_promised_are_those_that_are_tested() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    tested = [line.replace("==", ">=") for line in lines if not line.startswith("#")]
    assert tested == project["project"]["dependencies"]


@pytest.mark.parametrize("package", packages_on_disk())
def test_every_package_imports_with_a_docstring(package: str) -> None:
    assert importlib.import_module(package).__doc__


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_linked_folder_is_no_top_level_package(name: str, tmp_path: Path) -> None:
    code = f"""
import importlib.util, propc.{name}
assert importlib.util.find_spec("{name}") is None
"""
    run = python(code, tmp_path)
    assert run.returncode == 0, run.stderr


def test_types_are_shipped() -> None:
    assert (Path(propc.__file__).parent / "py.typed").is_file()


def test_public_names_are_sorted_and_exist() -> None:
    assert len(propc.__all__) == len(set(propc.__all__))
    assert [name for name in propc.__all__ if name not in dir(propc)] == []


@pytest.mark.parametrize("name", propc.__all__)
def test_public_name_is_documented(name: str) -> None:
    value = getattr(propc, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__doc__, f"propc.{name} has no docstring"


def test_import_changes_nothing_in_torch(tmp_path: Path) -> None:
    code = f"""
import sys, warnings
sys.path.append({str(ROOT / "tests" / "helpers")!r})
import torch, torch_state
before, seed = torch_state.snapshot(), torch.get_rng_state()
warnings.simplefilter("error")
import propc, propc.passes, propc.runtime
print(torch_state.changes(before, torch_state.snapshot()), torch.equal(seed, torch.get_rng_state()))
"""
    run = python(code, tmp_path)
    assert run.stdout.strip() == "[] True", run.stderr


def test_import_takes_along_nothing_that_few_need(tmp_path: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import propc
slow = {"networkx", "matplotlib", "scipy", "sympy", "torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd"}
print(sorted(slow & (set(sys.modules) - before)))
"""
    run = python(code, tmp_path)
    assert run.stdout.strip() == "[]", run.stderr

"""The documentation is true: its code runs and prints what it says, its links and names exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shutil
import sys
import types
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import propc
from propc.distributions import families, measures
from propc.runtime.lowering import lowering

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SKELETONS = sorted((ROOT / "docs" / "skeletons").glob("*.py"))
MADE_BY_RUNNING = {"runs/", ".venv"}  # named in the documentation, not in the repository


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the backticks, its text, and the line where the text begins."""

    info: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    info: str | None = None
    start, lines = 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif info is None:
            info, start, lines = line[3:].strip(), number + 1, []
        else:
            found.append(Block(info, "\n".join(lines), start))
            info, lines = None, []
    assert info is None, f"{page.name}: a block is not closed"
    return found


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@contextlib.contextmanager
def as_users_run():
    """float32, as torch comes; the tests' own default is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(block: Block, module: types.ModuleType) -> str:
    """Run a block in a module; gives what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, "model.py", "exec"), vars(module))
    return printed.getvalue()


def same_text(a: str, b: str) -> bool:
    return [line.rstrip() for line in a.strip().splitlines()] == [line.rstrip() for line in b.strip().splitlines()]


@pytest.fixture(autouse=True)
def _known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names as propc comes: other pages, tests and examples give some of the same names."""
    for name in ("passes.pipeline", "propagators.registry", "estimators.estimator", "runtime.backends"):
        place = importlib.import_module(f"propc.{name}")
        own = {name: made for name, made in place._TABLE.items() if made.__module__.startswith("propc.")}
        monkeypatch.setattr(place, "_TABLE", own)
    for table in (families, measures, lowering):
        monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page share a namespace; a text block right after one is what it prints."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = None
    with as_users_run():
        for block in blocks(page):
            if block.info == "python":
                try:
                    printed = run(block, module)
                except Exception as error:
                    raise AssertionError(f"{by_name(page)}, block at line {block.line}: {error!r}") from error
            elif block.info == "text" and printed is not None:
                assert same_text(printed, block.text), (
                    f"{by_name(page)}, line {block.line} is not what the block before it prints:\n{printed}"
                )
                printed = None
            else:
                printed = None


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_blocks_left_out_say_why(page: Path) -> None:
    for block in blocks(page):
        if block.info.startswith("python") and block.info != "python":
            assert re.fullmatch(r"python no-run: .{10,}", block.info), f"{page.name}:{block.line}"


@pytest.mark.parametrize("path", SKELETONS, ids=by_name)
def test_skeletons(path: Path) -> None:
    with as_users_run():
        runpy.run_path(str(path), run_name="__main__")


def test_every_guide_names_its_skeleton() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in SKELETONS if path.name not in text] == []
    assert len(SKELETONS) > len(list((ROOT / "docs").glob("writing_*.md")))  # two for propagators


# -- links and names ----------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=by_name)
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{by_name(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{by_name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_exist(page: Path) -> None:
    """A path in backticks, such as `passes/pipeline.py`, is there."""
    for name in re.findall(r"`([\w.\-]+/[\w./\-]*)`", prose(page)):
        if name not in MADE_BY_RUNNING:
            assert (ROOT / name).exists() or (page.parent / name).exists(), f"{by_name(page)}: {name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=by_name)
def test_files_in_commands_exist(page: Path) -> None:
    """Also `make test ARGS="tests/api/test_compile.py"`, and in what is typed into a shell."""
    folders = r"\b(?:tests|docs|examples|benchmarks|propc|passes|runtime)/[\w/]*\.(?:py|md)\b"
    for name in re.findall(folders, page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{by_name(page)}: {name}"


def resolves(name: str) -> bool:
    """Whether `propc.a.b` can be imported and read."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def public_names(text: str) -> set[str]:
    return set(re.findall(r"`@?(propc(?:\.\w+)+)", text))


def missing_section() -> str:
    return re.split(r"^## ", prose(ROOT / "README.md"), flags=re.M)[3]


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_names_exist(page: Path) -> None:
    """A name in backticks, such as `propc.passes.Pass`, is there."""
    text = prose(page)
    if page.name == "README.md":
        text = text.replace(missing_section(), "")
    assert [name for name in public_names(text) if not resolves(name)] == []


def test_what_is_missing_is_missing() -> None:
    """The README's list of what propc does not do yet."""
    section = missing_section()
    assert section.startswith("What it does not do yet")
    there = {name for name in public_names(section) if resolves(name)}
    assert not there, f"the README says that there is no {', '.join(there)}"


@pytest.mark.parametrize("module", [propc, propc.estimators, propc.passes, propc.propagators])
def test_every_public_name_is_in_the_reference(module: types.ModuleType) -> None:
    words = set(re.findall(r"\w+", prose(ROOT / "docs" / "reference.md")))
    assert [name for name in module.__all__ if name not in words] == []


def test_every_estimator_is_documented() -> None:
    """In the README's table, under a heading of its own, and no more than there are."""
    known = {name for name in propc.estimators.known_estimators() if is_builtin(name)}
    page = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `([\w-]+)`", page, flags=re.M)) == known
    readme = prose(ROOT / "README.md")
    assert set(re.findall(r'^\| `"([\w-]+)"`', readme, flags=re.M)) == known


def is_builtin(name: str) -> bool:
    return type(propc.estimator(name)).__module__.startswith("propc.")


def test_options_are_documented() -> None:
    """Every option of an estimator stands in its section of the reference."""
    page = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `([\w-]+)`(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    for name, text in sections.items():
        for option in fields(propc.estimator(name)):
            assert f"`{option.name}`" in text, f"docs/estimators.md, {name}: {option.name}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make (\w+)", page.read_text(encoding="utf-8"), flags=re.M))
        assert named <= targets, f"{by_name(page)}: {named - targets}"


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_pictures(tmp_path: Path) -> None:
    """The committed picture shows the nodes of the graph as it is now: else run docs/make_images.py."""
    drawing = runpy.run_path(str(ROOT / "docs" / "make_images.py"))
    drawing["main"](tmp_path)
    for path in tmp_path.iterdir():
        committed = ROOT / "docs" / "images" / path.name
        assert titles(committed) == titles(path), f"run docs/make_images.py: {path.name} is old"


def titles(svg: Path) -> list[str]:
    return sorted(re.findall(r"<title>(.*?)</title>", svg.read_text(encoding="utf-8")))

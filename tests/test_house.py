"""The rules of the house: sizes of folders, what each says of itself, names that stand once, layers that hold all."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
TREES = ("propc", "passes", "runtime")
MOST_FILES = 20
FEWEST_WORDS = 25
# What tests have beside the folders of the package.
BESIDE = {"benchmarks", "docs", "examples", "fuzz", "golden", "helpers", "packaging", "statistical"}
# Files of one name, and classes of one name, that are still to go: only ever fewer.
FILES_TO_RENAME = {"gaussian_shaping.py", "reduce.py", "scan.py"}
CLASSES_TO_RENAME = {"Rewiring", "Traced"}


def modules() -> list[Path]:
    """Every file of the package; `propc/passes` and `propc/runtime` are links, and not followed."""
    return sorted(path for tree in TREES for path in walk(ROOT / tree) if path.suffix == ".py")


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
        elif path.is_file():
            yield path


def folders() -> list[Path]:
    return sorted({path.parent for path in modules()})


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def repeated(named: Callable[[Path], Iterator[str]]) -> dict[str, list[str]]:
    """Names that several files give, or one file several times, and the files."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for name in named(path):
            places[name].append(by_name(path))
    return {name: paths for name, paths in places.items() if len(paths) > 1}


@pytest.mark.parametrize("folder", folders(), ids=by_name)
def test_no_folder_has_too_many_files(folder: Path) -> None:
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES, files


@pytest.mark.parametrize("folder", folders(), ids=by_name)
def test_every_folder_says_what_it_is_given_gives_and_may_import(folder: Path) -> None:
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(said.split()) >= FEWEST_WORDS, said


def test_no_two_files_of_one_name() -> None:
    """But a choice and its rule, and the public alias of the messages."""

    def names(path: Path) -> Iterator[str]:
        if path.name != "__init__.py" and by_name(path) != "propc/messages.py":
            yield path.name

    def is_choice_and_rule(paths: list[str]) -> bool:
        return [str(Path(path).parent) for path in paths] == ["propc/estimators", "propc/propagators/sites"]

    twice = {name: paths for name, paths in repeated(names).items() if not is_choice_and_rule(paths)}
    assert set(twice) == FILES_TO_RENAME, twice


def test_no_two_classes_of_one_name() -> None:
    def names(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name.strip("_")

    twice = repeated(names)
    assert set(twice) == CLASSES_TO_RENAME, twice


def test_every_part_of_the_package_stands_in_a_layer() -> None:
    """A folder below another has the layer of that one, but for those of `runtime/`, which lie at several heights."""
    tomllib = pytest.importorskip("tomllib")
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = {name for layer in contract[0]["layers"] for name in re.split(r"\s*[|:]\s*", layer)}
    tops = [path for tree in ("propc", "runtime") for path in (ROOT / tree).iterdir()]
    parts = {path.stem for path in tops if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}
    named = {name.rpartition(".")[2] for name in layers}
    assert parts - {"runtime"} == named


@pytest.mark.filterwarnings("ignore::ImportWarning")  # grimp brings pandas where there is one
def test_imports_have_no_circles() -> None:
    """Nor do those for typing, but for the exceptions of the contract of layers: a graph draws and checks itself."""
    grimp, networkx = pytest.importorskip("grimp"), pytest.importorskip("networkx")
    tomllib = pytest.importorskip("tomllib")
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    tree = grimp.build_graph("propc", exclude_type_checking_imports=False, cache_dir=None)
    imports = networkx.DiGraph(
        (name, at) for name in tree.modules for at in tree.find_modules_directly_imported_by(name)
    )
    exceptions = [tuple(named.split(" -> ")) for named in contract[0]["ignore_imports"]]
    assert len(exceptions) <= 2
    imports.remove_edges_from(exceptions)
    assert [sorted(names) for names in networkx.strongly_connected_components(imports) if len(names) > 1] == []


def helpers() -> Iterator[tuple[Path, ast.FunctionDef, set[str]]]:
    """The functions at the head of a file of tests that are no tests, and all names that the file gives itself."""
    for path in sorted(TESTS.rglob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        functions = [node for node in body if isinstance(node, ast.FunctionDef)]
        names = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
        own = {name.id for target in names for name in ast.walk(target) if isinstance(name, ast.Name)}
        own |= {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for function in functions:
            if not function.name.startswith("test_"):
                yield path, function, own


def test_programs_of_tests_have_telling_names() -> None:
    """A chain or a rollout can be anything: these stand in the zoo, or in a golden file by their names."""
    vague = {by_name(path) for path, function, _ in helpers() if function.name in ("chain", "rollout")}
    assert vague == {
        "tests/helpers/zoo.py",
        "tests/helpers/showcase.py",
        "tests/passes/insert/test_gaussian_shaping.py",
    }


def test_no_two_helpers_of_one_body() -> None:
    """Two bodies of the same words are the same, but where they speak of what each file has for itself.

    `tests/packaging/` runs where the helpers are not.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for path, function, own in helpers():
        said = ast.get_docstring(function) is not None
        body = ast.Module(function.body[said:], [])
        used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
        if path.parent.name != "packaging" and not used & own:
            places[ast.unparse(body)].append(f"{by_name(path)}: {function.name}")
    assert not [copies for copies in places.values() if len(copies) > 1]


def test_tests_mirror_the_tree() -> None:
    """Every folder of tests has the path of a folder of the package, or is one of those beside them."""
    package = {by_name(folder).removeprefix("propc/") for folder in folders()}
    mine = {str(path.parent.relative_to(TESTS)) for path in TESTS.rglob("*.py")} - {"."}
    assert {folder for folder in mine if folder.partition("/")[0] not in BESIDE} <= package


@pytest.mark.parametrize("tree", TREES)
def test_every_number_with_a_name_says_why(tree: str) -> None:
    """A constant that is a number has a comment on its line or above, or a docstring behind."""

    def silent(path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8")
        lines, body = text.splitlines(), ast.parse(text).body
        for node, behind in zip(body, [*body[1:], None]):
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not _is_number(node.value):
                continue
            said = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            above = lines[node.lineno - 2] if node.lineno > 1 else ""
            if not (said or above.startswith("#") or "#" in lines[node.lineno - 1]):
                yield f"{by_name(path)}:{node.lineno}: {lines[node.lineno - 1]}"

    assert not [each for path in walk(ROOT / tree) if path.suffix == ".py" for each in silent(path)]


def _is_number(value: ast.expr | None) -> bool:
    """Whether it is a number, arithmetic of numbers and names, or a tuple of such, and not names alone."""
    parts = (ast.Tuple, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.Name, ast.Load)
    every = [] if value is None else list(ast.walk(value))
    numbers = [node for node in every if isinstance(node, ast.Constant)]
    return bool(numbers) and all(isinstance(node, parts) for node in every) and all(map(_counts, numbers))


def _counts(node: ast.Constant) -> bool:
    return isinstance(node.value, (int, float)) and not isinstance(node.value, bool)

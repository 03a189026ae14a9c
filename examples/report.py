"""What every example does around its model: options, output folder, graph files."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

import propc


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all examples share: ``--smoke`` and ``--out``."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--smoke", action="store_true", help="a tiny run of a few seconds")
    options.add_argument("--out", type=Path, default=Path("runs") / name, help="output folder")
    return options


def stem(label: str) -> str:
    """A label as part of a file's name."""
    return label.replace(", ", "-").replace(" ", "_")


def write_graph(graph: propc.PropagationGraph, folder: Path, stem: str = "graph") -> None:
    """Write a propagation graph as text, as DOT and, where Graphviz is installed, as SVG."""
    (folder / f"{stem}.txt").write_text(f"{graph}\n")
    (folder / f"{stem}.dot").write_text(graph.to_dot())
    try:
        graph.render(str(folder / f"{stem}.svg"))
    except propc.PropcError as error:  # no Graphviz: the text and the DOT file are still there
        print(f"No {stem}.svg: {error}")


def write_results(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Save the rows behind a table as JSON, for other programs."""
    (folder / "results.json").write_text(json.dumps(list(rows), indent=1) + "\n")


def show(table: RenderableType, folder: Path) -> None:
    """Print a table, or a group of them, and save it as ``table.txt``."""
    Console().print(table)
    with (folder / "table.txt").open("w") as file:
        Console(file=file, width=120).print(table)

"""Plots of a comparison, and what the trained models make of digits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae.data import Images
from vae.model import DiscreteVAE

Row = dict[str, Any]


def plot(estimators: Sequence[str], runs: Sequence[Row], noise: Sequence[Row], path: Path) -> None:
    """The test ELBO over epochs and over seconds, and the variances as bars."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    epochs, seconds, bars = figure.subplots(1, 3)
    for index, name in enumerate(estimators):
        curves = [run["curve"] for run in runs if run["estimator"] == name]
        style = {"color": f"C{index}", "linestyle": "-" if index < 10 else "--"}
        for axes, along in ((epochs, "epoch"), (seconds, "seconds")):
            x, y = (torch.tensor([[row[key] for row in curve] for curve in curves]) for key in (along, "test_elbo"))
            axes.plot(x.double().mean(0), y.mean(0), label=name, linewidth=1, **style)
            axes.fill_between(x.double().mean(0), y.amin(0), y.amax(0), alpha=0.15, color=f"C{index}", linewidth=0)
            axes.set(xlabel=along, title="test ELBO, mean and range over seeds")
    draw_variances(bars, estimators, noise)
    figure.legend(*epochs.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="small")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def draw_variances(axes: Axes, estimators: Sequence[str], noise: Sequence[Row]) -> None:
    """Two bars for every estimator; an estimate without variance has none."""
    places = torch.arange(len(estimators))
    for shift, stage in ((-0.2, "first"), (0.2, "trained")):
        variance = {row["estimator"]: row["variance"] for row in noise if row["stage"] == stage}
        axes.barh(places + shift, [variance[name] for name in estimators], 0.4, label=f"{stage} parameters")
    if any(row["variance"] > 0 for row in noise):
        axes.set_xscale("log")
    axes.set_title("variance of the encoder's gradient")
    axes.set_yticks(places, estimators)
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="lower right")


@torch.no_grad()
def gallery(models: Mapping[str, DiscreteVAE], images: Images, path: Path, count: int = 12) -> None:
    """Test images and, below, what each model makes of them; right of these, draws from its prior."""
    x = images.test[:count]
    rows = [("test images", x, torch.full_like(x, torch.nan))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, model in models.items():
            seen, drawn = model.posterior(x).sample(), model.prior(count).sample()
            rows.append((name, *(model.decode(z).sigmoid() for z in (seen, drawn))))
    figure = Figure(figsize=(14, 0.62 * len(rows) + 0.4), layout="constrained")
    for axes, (name, *parts) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        for place, part in zip(axes, parts, strict=True):
            place.imshow(side_by_side(part, images.shape), cmap="gray_r", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
            place.axis("off")
        axes[0].set_title(name, loc="left", fontsize="small", pad=2)
        axes[1].set_title("" if parts[1].isnan().all() else "drawn from the prior", loc="left", fontsize="small", pad=2)
    figure.savefig(path, dpi=100)


def side_by_side(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Images [n, pixels] in one row, [height, n·(width + 1)]."""
    tiles = torch.nn.functional.pad(x.unflatten(-1, shape), (0, 1))
    return tiles.transpose(0, 1).flatten(1)

"""Images as intensities in [0, 1]: scikit-learn's digits, or MNIST from a folder of idx files."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class Images:
    """What is learned from, and what a model is judged by.

    Attributes:
        train: intensities [N, pixels], binarized anew whenever they are learned from.
        seen: binary training images, at most 10,000, drawn once.
        test: binary test images, drawn once.
        shape: height and width of an image.
    """

    train: Tensor
    seen: Tensor
    test: Tensor
    shape: tuple[int, int]


def load(folder: Path | None = None) -> Images:
    """MNIST where a folder is given, else the digits."""
    return digits() if folder is None else mnist(folder)


def digits() -> Images:
    """The 1797 digits of 8×8 pixels that come with scikit-learn, a fifth of them for tests."""
    pixels = torch.as_tensor(load_digits().images, dtype=torch.float32) / 16
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([len(pixels) // 5])
    return split(pixels[train], pixels[test])


def mnist(folder: Path) -> Images:
    """The handwritten digits of 28×28 pixels, from the files of LeCun, Cortes & Burges, packed or not.

    Raises:
        FileNotFoundError: the images are not in the folder.
    """
    train, test = (read_idx(find(folder, stem)).float() / 255 for stem in ("train-images", "t10k-images"))
    return split(train, test)


def split(train: Tensor, test: Tensor) -> Images:
    """From intensities [N, height, width]."""
    draws = torch.Generator().manual_seed(0)
    seen, unseen = (torch.bernoulli(images.flatten(1), generator=draws) for images in (train[:10_000], test))
    return Images(train.flatten(1), seen, unseen, tuple(test.shape[1:]))


def find(folder: Path, stem: str) -> Path:
    """The first file of that name: the parts are joined by "-" or ".", the end may be ".gz"."""
    files = sorted(folder.glob(f"{stem}[-.]idx3-ubyte*"))
    if not files:
        raise FileNotFoundError(f"no {stem}-idx3-ubyte or {stem}-idx3-ubyte.gz in {folder}")
    return files[0]


def read_idx(path: Path) -> Tensor:
    """A tensor from an idx file: two zero bytes, type, number of dimensions, the dimensions, the values.

    Raises:
        ValueError: the file is none, or does not hold what its header says.
    """
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        raise ValueError(f"{path} is no idx file: it begins with {data[:4].hex(' ')}")
    start = 4 + 4 * data[3]
    shape = numpy.frombuffer(data[4:start], ">i4").tolist()
    values = numpy.frombuffer(data[start:], TYPES[data[2]])
    if len(shape) != data[3] or values.size != numpy.prod(shape):
        raise ValueError(f"{path} says that it holds {shape}, and holds {values.size} values")
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="))).reshape(shape)

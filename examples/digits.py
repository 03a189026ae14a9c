"""Handwritten digits, for the examples that learn to read them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


class Digits(NamedTuple):
    """Images [n, 64] in [-1, 1] and labels [n], for training and held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """The 1797 digits of scikit-learn, 8 by 8 pixels, a quarter of them held out."""
    images, labels = load_digits(return_X_y=True)
    train, test, labels, test_labels = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    scaled = [torch.as_tensor(x).float() / 8 - 1 for x in (train, test)]
    return Digits(scaled[0], torch.as_tensor(labels), scaled[1], torch.as_tensor(test_labels))


def batches(data: Digits, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of the training digits in random order, in batches of one size."""
    for rows in torch.randperm(len(data.labels)).split(size):
        if len(rows) == size:
            yield data.images[rows], data.labels[rows]

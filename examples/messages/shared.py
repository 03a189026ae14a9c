"""What the examples of this folder share: the handwritten digits, and what all examples do around their models."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))
from digits import Digits, batches, digits
from report import parser, show, write_graph, write_results

__all__ = ["Digits", "accuracy", "batches", "digits", "parser", "show", "write_graph", "write_results"]


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is their label's."""
    return (network(images).argmax(-1) == labels).float().mean().item()

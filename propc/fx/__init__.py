"""What is known of torch.fx nodes: which operations are random, write or mix rows, how a program is cut, and the
source of a segment.

Given nodes and programs of torch.fx, it gives others; of graphs it knows nothing. It may import distributions, types,
util and errors.
"""

"""Batching rules of torch operations: how each runs on many samples at once.

Given an operation and which of its arguments carry plates, a rule gives the operation on all elements, or says that it
does not hold; what has no rule goes through `torch.vmap` once, and is recorded. They may import
`propc.runtime.autograd` and all below.
"""

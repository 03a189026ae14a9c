"""Inverse-variance weights and the per-sample gradients they need.

Given two parts of a gradient, or the code that leads to a target, it gives their mixture, weighted by what each is
worth. The weights have one definition, which all kernels follow. It may import batching rules and all below.
"""

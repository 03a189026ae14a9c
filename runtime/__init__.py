"""Executing a scheduled propagation graph.

Given a graph with its schedule, it gives an executable that is called like the program, and whose result autograd can
differentiate. Importable as `propc.runtime`; what builds and runs steps may import the passes and all below, and the
folders lower down less: each says what.
"""

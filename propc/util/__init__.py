"""Helpers that know nothing of graphs: tables of names, patterns, random states, units, clocks, and the private names
of torch.

Given plain values, they give plain values, and say what was wrong with them in terms of the caller. They may import
`propc.types` and `propc.errors` alone.
"""

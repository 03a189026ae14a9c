"""Segments, sites and sums in plates: what runs once for all samples and rows.

Given a stretch of a program and the plates of its inputs, it gives a function on all elements, by rules, by vmap or
one by one. It may import the passes and all below, and the rest of the plan.
"""

"""Passes for weighting targets, which are the tensors at which inverse-variance weights are taken: given a site that
names one, they give the code that leads from the target to the site, and the tangents along it.

They may import what all passes may.
"""

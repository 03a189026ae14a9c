"""Passes for the tensors at which inverse-variance weights are taken."""

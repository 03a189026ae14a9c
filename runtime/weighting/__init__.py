"""Inverse-variance weights and the per-sample gradients they need."""

"""Propagators of nodes and costs."""

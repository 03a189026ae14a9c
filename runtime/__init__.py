"""Executing a scheduled propagation graph. Importable as `propc.runtime`."""

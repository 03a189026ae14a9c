"""Passes that put new nodes into the graph for an estimator."""

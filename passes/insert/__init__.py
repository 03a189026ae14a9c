"""Passes that put new nodes into the graph for an estimator: copies of a site for each of its values, and draws of a
fitted Gaussian.

Given the sites whose estimators ask for them, they give a graph in which the new nodes stand before the costs. They
may import what all passes may.
"""

"""Propagators of sites: how a site draws, and which messages it sends.

Given a distribution and what the site asked for, a rule gives the draw and the gate through which the gradient
passes; the estimator of its name chooses it. They may import what all propagators may.
"""

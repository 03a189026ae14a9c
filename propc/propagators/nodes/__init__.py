"""Propagators of nodes and costs: they hand messages on, scale, clip, add or stop them, or start them at a cost.

Given a node and its message, each gives the messages to the nodes around it. They may import what all propagators
may.
"""

"""Passes that turn equal steps into a loop: given the first and the last steps of a long scan, as the other passes
left them, they give one node that stands for all of those between.

They may import what all passes may.
"""

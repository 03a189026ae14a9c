"""Passes that decide in which order and in what portions a graph runs: given a graph that is complete, they find
stages that do the same and write down the order of the forward pass.

They may import what all passes may.
"""

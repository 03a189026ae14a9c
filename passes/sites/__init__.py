"""Passes that find costs and sites and give each site its rule: given a program that has just been cut at its marks,
they take returned sums apart, ask the estimators, and check that every rule can stand where it is.

They may import what all passes may.
"""

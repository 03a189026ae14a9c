"""Passes that trade time for memory: stretches that run again in the reverse pass, and plates that run a few elements
at a time.

Given a graph, they mark its blocks and plates; what is marked is carried out at run time. They may import what all
passes may.
"""

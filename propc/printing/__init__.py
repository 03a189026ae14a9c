"""A graph as text and as a picture: lines, DOT, folded equal steps, colours.

Given a graph and, for some pictures, a number for each node, it gives a string that is the same in every process. It
may import the frontend and all below.
"""

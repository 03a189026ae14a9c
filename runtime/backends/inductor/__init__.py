"""The backend that compiles stages with torch's inductor.

Given a plan, it writes the source of its stages, forward and reverse, has them compiled once for each kind of input,
and gives a plan that calls them. It may import what all backends may.
"""

"""Plans: steps in order, what is done to them, and what runs them.

A plan is a list of `Step`s over numbered places. Blocks that run again and loops of scans are functions from plan to
plan; the runner makes of one a straight function of source. It knows no kind of node, and may import the passes and all
below.
"""

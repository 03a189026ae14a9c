"""Checks of values, of independence, of replay and of memory.

Given what a step took and gave, they raise an error that names the node, the line and the way out, and cost a healthy
step next to nothing. They may import the passes and all below, and the rest of the plan.
"""

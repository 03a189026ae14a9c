"""From a scheduled graph to a list of steps, and what runs the list.

Given a graph, the planner gives steps that read and write slots; the runner calls them one by one, or as one straight
function of source. It may import the passes and all below.
"""

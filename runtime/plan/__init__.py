"""From a scheduled graph to a list of steps, and what runs the list."""

"""Passes that turn equal steps into a loop."""

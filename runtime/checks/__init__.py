"""Checks of values, of independence, and of memory."""

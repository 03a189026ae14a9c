"""Passes that decide which messages go where."""

"""Passes that decide in which order and in what portions a graph runs."""

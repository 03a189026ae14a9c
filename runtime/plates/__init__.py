"""Segments, sites and sums in plates."""

"""Passes on plates: samples of a site, and rows of the data."""

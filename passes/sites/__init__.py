"""Passes that find costs and sites and give each site its rule."""

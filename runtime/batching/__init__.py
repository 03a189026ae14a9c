"""Batching rules of torch operations: how each runs on many samples at once."""

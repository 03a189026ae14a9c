"""Hooks for profiles and statistics: steps, time, cotangents."""

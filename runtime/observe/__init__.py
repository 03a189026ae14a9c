"""Hooks for profiles and statistics: steps, time, cotangents.

Given a plan and a watcher, they give a plan that does the same and tells the watcher of every step. They may import
the passes and all below, and the rest of the plan.
"""

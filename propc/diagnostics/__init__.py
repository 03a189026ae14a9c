"""What explains and measures: tables of sites, comparisons, profiles, signal-to-noise ratios.

Given a compiled program and arguments, it gives figures, and leaves program and random numbers as they were. It may
import the compiler and all below; nothing that computes a gradient imports it.
"""

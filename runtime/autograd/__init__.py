"""The autograd functions that carry messages, and what runs again in the reverse pass.

Given tensors, each gives tensors whose backward does what a rule asks for: weigh, draw again, refit, recompute. They
may import printing and all below, and know nothing of plans.
"""

"""The autograd functions that carry messages, and what runs again in the reverse pass."""

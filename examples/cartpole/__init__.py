"""Cart-pole swing-up: the real system, a model learned from data, and a policy."""

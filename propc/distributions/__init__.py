"""What is known of torch distributions: parameters, support, log probabilities, samples, perturbed logits.

Given a distribution, it gives its parts as tensors and a way to put others in. Which family has which property stands
here alone. It may import `propc.types`, `propc.util` and `propc.errors`.
"""

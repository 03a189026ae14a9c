"""What is known of torch distributions: parameters, support, log probabilities, samples."""

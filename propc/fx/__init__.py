"""What is known of torch.fx nodes: operations, programs, code of a segment."""

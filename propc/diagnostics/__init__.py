"""What explains and measures; nothing that computes a gradient needs it."""

"""What users write: `compile`, the marks in a program, plates, scans and networks."""

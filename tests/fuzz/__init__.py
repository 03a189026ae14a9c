"""A campaign of random programs against exact answers: `make fuzz`, or `python -m tests.fuzz --help`."""

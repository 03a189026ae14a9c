"""Estimators beside each other: `propc.compare`.

Given a program, arguments and names of estimators, it runs all on the same inputs in turn and gives variances, biases
and times, with what is uncertain of each. It may import the compiler and all below.
"""

"""Estimators beside each other and before judges: `propc.compare`, `propc.check`.

Given a program, arguments and names of estimators, it runs all on the same inputs in turn and gives variances, biases
and times, with what is uncertain of each; a reference is what two unlike unbiased estimators agree on. It may import
the compiler and all below.
"""

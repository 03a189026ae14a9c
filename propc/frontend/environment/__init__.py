"""What a traced function reaches outside of its arguments: globals, closures, attributes, random states.

Given a function, it gives a picture of all of these, by which a later call sees whether anything changed, and finds
what a trace leaked or wrote. It may import `propc.ir` and all below.
"""

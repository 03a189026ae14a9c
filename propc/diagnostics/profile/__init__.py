"""Where the time and the memory of a step go, and of compiling it: `compiled.profile(...)`.

Given a compiled program and arguments, it watches real steps and gives a row for each node, as a table, a picture or
a trace. It may import the compiler and all below.
"""

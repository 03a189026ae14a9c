"""From a traced program through the passes to something that runs, kept by kind of input.

Given a function, arguments and options, it gives an executable: the same one wherever nothing has changed that it
depends on. It may import the runtime and all below.
"""

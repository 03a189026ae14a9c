"""Where the time and the memory of a step go, and of compiling it: `compiled.profile(...)`."""

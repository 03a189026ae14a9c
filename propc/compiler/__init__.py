"""From a traced program through the passes to something that runs, kept by kind of input."""

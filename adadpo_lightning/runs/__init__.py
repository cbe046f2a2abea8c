"""The directories of runs: one writer at a time, what was logged there, and figures of it."""

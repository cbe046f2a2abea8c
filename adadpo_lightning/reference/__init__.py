"""Reference log-probabilities: live references and caches."""

"""Loading of policies and references, and computation of token log-probabilities."""

"""Everything that yields reference log-probabilities."""

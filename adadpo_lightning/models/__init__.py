"""Policies and references: how they are loaded, and how a batch becomes token log-probabilities."""

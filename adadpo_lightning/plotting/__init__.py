"""Figures of runs, from the logs that they leave."""

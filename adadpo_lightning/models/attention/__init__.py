"""Attention of the packed layout."""

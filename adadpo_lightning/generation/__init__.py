"""Sampling answers to prompts."""

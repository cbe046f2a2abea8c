"""Checkpoints: valid or damaged, resume, export, model card."""

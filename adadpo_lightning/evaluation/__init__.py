"""What trained models are worth: win rates against another model, and the embedded task's own numbers."""

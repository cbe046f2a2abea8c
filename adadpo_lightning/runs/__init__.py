"""What a run has written: logs and figures."""

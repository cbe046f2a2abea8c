"""Judges that compare two answers; each file registers one, see `base.register_judge`."""

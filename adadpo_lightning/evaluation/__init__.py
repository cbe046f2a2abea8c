"""Evaluation: win rates of a model's responses against another's, according to a judge.

`evaluate` is the job of the command line, `report` summarises preferences, `length_controlled` removes the effect of
length, `comparisons` matches files, and `judges` has one file per judge.
"""

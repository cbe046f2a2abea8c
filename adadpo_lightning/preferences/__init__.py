"""From prompts to pairs: sample answers of a model, judge them, select pairs, and report on the selection.

`options` says what to do, `make` does it, `judging` scores the answers, `select` forms the pairs and `rows` writes
them; `statistics`, `report` and `figures` say what was made.
"""

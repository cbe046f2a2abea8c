"""Generation: from prompts to answers. One sampler serves the command line, the callback and the Python API.

`options` and `prompts` say what to ask, `sampling` draws, `engines` run a model, `answers` is for models in memory, and
`generate` is the resumable job over files.
"""

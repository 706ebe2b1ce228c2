"""Everything that works without a graph: checkpoint in, video frames out.

`pipeline` is the way in. `logic` decides with plain numbers, `stages` hold the algorithms on
tensors, `adapters` are the only code that touches foreign APIs.
"""

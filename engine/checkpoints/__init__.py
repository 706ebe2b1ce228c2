"""Files to formats: what a checkpoint is, and its tensors by name."""

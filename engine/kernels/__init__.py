"""Functions on tensors; nothing is chosen here."""

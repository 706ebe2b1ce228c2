"""Attention and matmul back ends: what is installed is probed once, and the reason kept where it is missing."""

"""One transformer block for both engines: its fused operations, its workspace and its phases."""

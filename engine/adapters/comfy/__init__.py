"""ComfyUI's side: model folders, tensors between nodes, progress and interrupt, memory."""

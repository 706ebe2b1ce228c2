"""Published checkpoints from the Hugging Face hub. huggingface_hub is imported here only, and only when used."""

"""The text encoder: tokenizer, UMT5 encoder, its 8-bit linears."""

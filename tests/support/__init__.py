"""What several test files use: tiny models, references, servers, a pretended card."""

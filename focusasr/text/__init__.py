"""Text normalization, tokenizers and languages."""

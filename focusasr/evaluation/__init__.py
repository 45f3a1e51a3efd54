"""How good the texts are, how sure that is, and what the attention does."""

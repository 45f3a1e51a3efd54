"""The network, its inference engine, and its weights on disk."""

"""Manifests, corpus readers and preprocessing."""

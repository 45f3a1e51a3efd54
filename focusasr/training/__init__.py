"""From manifests to a checkpoint."""

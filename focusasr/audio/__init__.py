"""From a file of any kind to 16 kHz samples, log-mel features and speech segments."""

"""Audio input: decoding, 16 kHz samples, log-mel features and speech segments."""

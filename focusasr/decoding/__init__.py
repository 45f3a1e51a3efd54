"""From encoder output to tokens and word times: pure tensor code."""

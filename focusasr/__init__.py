"""focusasr: a compact speech recognizer with focused hybrid attention, to own end to end."""

__version__ = "0.1.0"

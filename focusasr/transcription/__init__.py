"""Transcription of recordings, and output files."""

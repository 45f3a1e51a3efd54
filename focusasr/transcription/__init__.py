"""From recordings to transcripts and output files."""

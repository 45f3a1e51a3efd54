"""The commands, and everything that is shown: tables, HTML, plots."""

"""The commands and their output: tables, HTML reports and plots."""

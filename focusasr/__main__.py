"""`python -m focusasr` is the command line."""

from focusasr.cli import program

if __name__ == "__main__":
    program()

"""`python -m focusasr` is the command line."""

from focusasr.cli import main

if __name__ == "__main__":
    main()

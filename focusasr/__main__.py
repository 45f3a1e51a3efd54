"""`python -m focusasr` is the command line."""

from focusasr.runtime.process import answer_interrupts


def program() -> None:
    """Be the process `focusasr`; Ctrl-C is answered from the start, before much is loaded."""
    answer_interrupts()
    from focusasr.cli import app

    app.program()


if __name__ == "__main__":
    program()

"""Command line as `python -m focusasr`."""

from focusasr.runtime.process import answer_interrupts


def program() -> None:
    """Run the command line; handle Ctrl-C from the start, before heavy imports."""
    answer_interrupts()
    from focusasr.cli import app

    app.program()


if __name__ == "__main__":
    program()

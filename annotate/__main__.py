"""`python -m annotate`: the app and its tools."""

from annotate.cli import run

if __name__ == "__main__":
    run()

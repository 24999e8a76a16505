"""`python -m roundoff`: the command, without its script."""

from roundoff.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()

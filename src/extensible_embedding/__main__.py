"""`python -m extensible_embedding`: the command line."""

from .cli import main

if __name__ == "__main__":
    main()

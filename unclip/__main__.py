"""`python -m unclip` is the command `unclip`."""

from unclip.cli.main import main

if __name__ == "__main__":
    main()

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip.cli import signals

    signals.install()

from data.inspect.inspection import main
from unclip.cli import options as cli

if __name__ == "__main__":
    cli.run(main)

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip.cli import signals

    signals.install()

from unclip.cli import options as cli
from unclip.edit.commands import main

if __name__ == "__main__":
    cli.run(main)

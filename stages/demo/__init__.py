"""From captioned images of your own to samples of their captions: `python -m stages.demo`."""

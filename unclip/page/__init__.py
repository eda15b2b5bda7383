"""The page, `python -m unclip.page`. README.md says which file does what."""

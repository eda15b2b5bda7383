"""The page, `python -m unclip.page`.

shelf.py opens pipelines, answers.py computes what a button asks for, markup.py turns it into HTML, and tabs.py places
it. Only tabs.py imports gradio.
"""

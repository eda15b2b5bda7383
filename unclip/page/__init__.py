"""The page, `python -m unclip.page`.

shelf.py holds the pipelines, answers.py says what a button does, markup.py how that looks, tabs.py places it all. Only
tabs.py imports gradio.
"""

"""The page, `python -m unclip.page`.

doors.py lets requests in, line.py bounds the jobs that wait, shelf.py opens pipelines, values.py and pictures.py read
what a visitor sends, answers.py computes what a button asks for, markup.py turns it into HTML, and tabs.py places it.
Only tabs.py imports gradio.
"""

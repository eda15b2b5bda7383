"""Curves of trainings, drawn from what they logged: `python -m stages.curves`."""

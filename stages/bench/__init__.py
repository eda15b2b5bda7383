"""Times every stage beside other projects' code on equal work: `python -m stages.bench`."""

"""Tell whether the parts of a pipeline are healthy, and name what is wrong; README.md has the rules."""

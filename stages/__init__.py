"""Training: one loop, and what each stage gives to it."""

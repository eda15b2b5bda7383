"""Code that yields (image, caption) pairs and batches."""

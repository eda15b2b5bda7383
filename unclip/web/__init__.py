"""The page that needs no server: a pipeline as static files that draw in the visitor's browser."""

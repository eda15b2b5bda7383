"""A small, complete unCLIP: CLIP, diffusion prior, diffusion decoder."""

__all__ = ["StopDrawing", "UnCLIP", "UserError"]
__version__ = "0.1.0"


def __getattr__(name: str):
    """Import on first use: `import unclip` alone costs no second for torch."""
    if name == "UnCLIP":
        from unclip.pipeline import UnCLIP

        return UnCLIP
    if name == "StopDrawing":
        from unclip.trajectory import StopDrawing

        return StopDrawing
    if name == "UserError":
        from unclip.errors import UserError

        return UserError
    raise AttributeError(f"module 'unclip' has no attribute {name!r}")

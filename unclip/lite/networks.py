"""The exported networks, opened by ONNX Runtime."""

from pathlib import Path

import numpy as np

from unclip.errors import UserError

Arrays = tuple[np.ndarray, ...]


class Networks:
    """The networks of a folder by name, each opened when it is first called: networks("text", token_ids)."""

    def __init__(self, folder: Path, threads: int = 0):
        """Open nothing yet. `threads` per network; 0 for as many as there are cores."""
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("the runtime is not installed: pip install onnxruntime") from error
        self.folder = folder
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        # The threads of a network that waits would take the cores from the next one: half the speed with few steps.
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.open_session = onnxruntime.InferenceSession
        self.sessions: dict[str, object] = {}

    def __contains__(self, name: str) -> bool:
        return (self.folder / f"{name}.onnx").is_file()

    def __call__(self, name: str, *inputs: np.ndarray) -> Arrays:
        """Compute a network. Inputs are in the order in which it was exported; those that it ignores are skipped."""
        if name not in self.sessions:
            path = str(self.folder / f"{name}.onnx")
            self.sessions[name] = self.open_session(path, self.options, providers=["CPUExecutionProvider"])
        session: object = self.sessions[name]
        names = [entry.name for entry in session.get_inputs()]  # type: ignore[attr-defined]
        feed = dict(zip(names, inputs, strict=True))
        return tuple(session.run(None, feed))  # type: ignore[attr-defined]

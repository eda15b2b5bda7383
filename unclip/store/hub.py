"""The Hugging Face Hub: repositories by their name OWNER/NAME, wherever a path is expected; and pipelines put there.

What is fetched stays in huggingface_hub's cache. Without a network, or with HF_HUB_OFFLINE=1, the cache alone is asked.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from unclip.errors import UserError, reason
from unclip.registry import PARTS

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz")
PATIENCE = 10
"""Seconds for the Hub to answer; huggingface_hub itself would wait for ever."""
LOGIN = "log in with: hf auth login"
REFUSALS = {
    "RevisionNotFoundError": "it has no branch, tag or commit {revision}",
    "RepositoryNotFoundError": f"no model has that name, or it is private ({LOGIN})",
    "GatedRepoError": f"accept its terms on its page there, then {LOGIN}",
    "LocalEntryNotFoundError": "it cannot be reached, or HF_HUB_OFFLINE is set, and the local cache has no copy",
    "IncompleteSnapshotError": "it cannot be reached, or HF_HUB_OFFLINE is set, and the local cache has only a part",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
    "LocalTokenNotFoundError": LOGIN,
}
"""What huggingface_hub's errors mean."""


def is_name(source: str | Path) -> bool:
    """Whether this may be a name on the Hub. A path wins, also one whose last part alone is missing: a misspelt
    checkpoints/NAME is nothing to ask a stranger for."""
    text = source if isinstance(source, str) else source.as_posix()
    return bool(NAME.fullmatch(text)) and not text.endswith(FILE_SUFFIXES) and not Path(text).parent.is_dir()


def find(source: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """A path as it is, there or not; for a name on the Hub the local folder of its files that match the patterns.

    Raises UserError for a revision of a path, or if the Hub does not give what is asked for.
    """
    if is_name(source):
        return _download(Path(source).as_posix(), files, revision)
    if revision is not None:
        raise UserError(f"{source} is a path on this machine, and only names on the Hub have the revision {revision}")
    return Path(source)


def find_pipeline(source: str | Path, revision: str | None = None) -> Path:
    """The same for a pipeline: of a repository only a pipeline's own files are fetched.

    Raises UserError as `find` does, and for a repository of something else.
    """
    folder = find(source, pipeline_files(list(PARTS)), revision)
    if is_name(source):
        needed = pipeline_files([name for name, stage in PARTS.items() if not stage.optional])
        optional = ("README.md", "captions.txt")
        if missing := [name for name in needed if name not in optional and not (folder / name).is_file()]:
            raise UserError(f"{source} on the Hugging Face Hub is not a pipeline of unclip: it has no {missing[0]}")
    return folder


def pipeline_files(stages: Sequence[str]) -> list[str]:
    own = [f"{stage}/{name}" for stage in stages for name in ("config.json", "model.safetensors")]
    return ["model_index.json", "tokenizer.json", *own, "README.md", "captions.txt"]


def _download(name: str, files: Sequence[str], revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # a second to import, and only wanted here
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    problem = None
    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except Exception as error:  # it raises what its network library raises, too
        problem = error
    only_cached = problem is not None
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=only_cached)
    except Exception as error:
        told = problem if isinstance(problem, HfHubHTTPError) else error
        why = _why(told).replace("{revision}", str(revision))
        raise UserError(
            f"there is no folder or file {name}, and the Hugging Face Hub does not give it: {why}"
        ) from told
    if only_cached and not isinstance(problem, OfflineModeIsEnabled):
        warnings.warn(f"the Hugging Face Hub does not answer: {name} is the copy in the local cache", stacklevel=2)
    return Path(folder)


def check_upload(name: str) -> None:
    """Raise UserError, before any work, for what cannot be a name on the Hub, or if nobody is logged in to it."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name} cannot be a name on the Hugging Face Hub; expected OWNER/NAME")
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(f"the Hugging Face Hub must know who publishes {name}; {LOGIN}")


def upload(folder: Path, name: str) -> str:
    """Put all files of a folder into the model repository of that name, which is made if need be. Returns its address.

    Raises UserError if the Hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        url = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="A pipeline of unclip")
        return str(url)
    except Exception as error:  # it raises what its network library raises, too
        raise UserError(f"the Hugging Face Hub does not take {name}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What an error of huggingface_hub means, in one line."""
    kind = type(error).__name__
    if kind == "HfHubHTTPError" and error.response.status_code == 401:
        return LOGIN
    return REFUSALS.get(kind, reason(error))

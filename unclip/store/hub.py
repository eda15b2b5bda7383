"""The Hugging Face Hub: repositories by their name OWNER/NAME, wherever a path is expected; and pipelines put there.

Fetched files stay in huggingface_hub's cache. Without a network, or with HF_HUB_OFFLINE=1, only the cache is read.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from unclip.errors import UserError, reason
from unclip.registry import PARTS

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz")
PATIENCE = 10
"""Seconds for the Hub to answer; huggingface_hub itself would wait for ever."""
OWN_FOLDERS = ("checkpoints", "outputs", "data", "tests")
"""Folders of this project, in which pipelines lie: whatever the working directory, these are no owners on the Hub."""
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
"""The meaning of huggingface_hub's errors."""


def is_hub_name(source: str | Path) -> bool:
    """Whether this may be a name on the Hub.

    It is a path if the folder that it lies in exists, or is one of this project's, so that nobody is asked for a
    misspelt checkpoints/NAME, or for one of another working directory.
    """
    text = source if isinstance(source, str) else source.as_posix()
    folder = Path(text).parent
    is_path = folder.name in OWN_FOLDERS or folder.is_dir() or text.endswith(FILE_SUFFIXES)
    return bool(HUB_NAME.fullmatch(text)) and not is_path


def resolve_source(source: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """The local path of a source: a path as it is, there or not; for a name on the Hub the folder of its files.

    Args:
        files: patterns of the files that are fetched from the Hub.
        revision: a branch, tag or commit on the Hub.

    Raises UserError for a revision of a path, or if the Hub does not give the files.
    """
    if is_hub_name(source):
        return _download(Path(source).as_posix(), files, revision)
    if revision is not None:
        raise UserError(f"{source} is a path on this machine, and only names on the Hub have the revision {revision}")
    return Path(source)


def find_pipeline(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a pipeline. Only the files of a pipeline are fetched from the Hub.

    Raises UserError as `resolve_source` does, and for a repository that holds no pipeline.
    """
    folder = resolve_source(source, [*pipeline_files(list(PARTS)), "examples/*"], revision)
    if is_hub_name(source):
        needed = pipeline_files([name for name, part in PARTS.items() if not part.optional])
        optional = ("README.md", "captions.txt")
        if missing := [name for name in needed if name not in optional and not (folder / name).is_file()]:
            raise UserError(f"{source} on the Hugging Face Hub is not a pipeline of unclip: it has no {missing[0]}")
    return folder


def pipeline_files(parts: Sequence[str]) -> list[str]:
    """The files of a pipeline with these parts, relative to its folder."""
    of_parts = [f"{part}/{name}" for part in parts for name in ("config.json", "model.safetensors")]
    return ["model_index.json", "tokenizer.json", *of_parts, "README.md", "captions.txt"]


def _download(name: str, files: Sequence[str], revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # a second to import, and only wanted here
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    problem = None
    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except Exception as error:  # any error of its network library
        problem = error
    only_cached = problem is not None
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=only_cached)
    except Exception as error:
        cause = problem if isinstance(problem, HfHubHTTPError) else error
        meaning = _meaning(cause).replace("{revision}", str(revision))
        raise UserError(
            f"there is no folder or file {name}, and the Hugging Face Hub does not give it: {meaning}"
        ) from cause
    if only_cached and not isinstance(problem, OfflineModeIsEnabled):
        warnings.warn(f"the Hugging Face Hub does not answer: {name} is the copy in the local cache", stacklevel=2)
    return Path(folder)


def check_upload(name: str) -> None:
    """Raise UserError, before any work, if this cannot be a name on the Hub, or if nobody is logged in to it."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{name} cannot be a name on the Hugging Face Hub; expected OWNER/NAME")
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(f"the Hugging Face Hub must know who publishes {name}; {LOGIN}")


def upload(folder: Path, name: str, files: Sequence[str]) -> str:
    """Put files of a folder into the model repository of that name, made if need be. Returns its address.

    Raises UserError if the Hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        url = HfApi().create_repo(name, exist_ok=True)
        message = "A pipeline of unclip"
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message=message)
        return str(url)
    except Exception as error:  # any error of its network library
        raise UserError(f"the Hugging Face Hub does not take {name}: {_meaning(error)}") from error


def _meaning(error: Exception) -> str:
    """The meaning of an error of huggingface_hub, in one line."""
    kind = type(error).__name__
    response = getattr(error, "response", None)
    if kind == "HfHubHTTPError" and response is not None and response.status_code == 401:
        return LOGIN
    return REFUSALS.get(kind, reason(error))

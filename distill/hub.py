"""The Hugging Face Hub: the names that its repositories have here, and its refusals in words that say what to do.

A repository is `hf:OWNER/NAME@REVISION`, one of data `hf:datasets/OWNER/NAME@REVISION`; `hf://` is the same, as a URL.
A folder inside follows a slash. The towers of a recipe are `hf-hub:OWNER/NAME@REVISION`, as open_clip spells it.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from distill.errors import ExpectedError

PREFIX, URL = "hf:", "hf://"
KINDS = ("model", "dataset")  # of repositories that hold folders of this project
LOG_IN = "log in (`hf auth login`, or set HF_TOKEN)"


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, or a folder in it ("": all of it); revision None is its main branch."""

    kind: str
    id: str
    revision: str | None
    folder: str

    @classmethod
    def named(cls, name: str) -> "Repository":
        """Return what a name or URL stands for; `ExpectedError` for one that names no repository."""
        from huggingface_hub.errors import HfUriError, HFValidationError
        from huggingface_hub.utils import parse_hf_uri, validate_repo_id

        odd = ExpectedError(
            f"{name}: names no repository of the Hub; expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or "
            f"hf:datasets/OWNER/NAME"
        )
        try:
            found = parse_hf_uri(as_url(name))
            validate_repo_id(found.id)
        except (HfUriError, HFValidationError):
            raise odd from None
        if found.type not in KINDS or "/" not in found.id or ".." in PurePosixPath(found.path_in_repo).parts:
            raise odd
        return cls(found.type, found.id, found.revision, found.path_in_repo)

    def path(self, name: str) -> str:
        """Return the path of a file of the folder inside the repository."""
        return f"{self.folder}/{name}" if self.folder else name


def as_url(name: str) -> str:
    """Return the URL that `hf:OWNER/NAME...` stands for; any other name stays as it is."""
    return URL + name.removeprefix(URL if name.startswith(URL) else PREFIX) if name.startswith(PREFIX) else name


def refusal(error: BaseException | None) -> str | None:
    """Return why the Hub refuses and what to do; None for anything else, for which asking again may help."""
    while error is not None:
        if (words := _refusal(error)) is not None:
            return words
        error = error.__cause__
    return None


def _refusal(error: BaseException) -> str | None:
    from huggingface_hub import errors

    response = getattr(error, "response", None) if isinstance(error, errors.HfHubHTTPError) else None
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the Hub may not be asked, and its cache here does not hold it; unset HF_HUB_OFFLINE, or fetch it first"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"no token; {LOG_IN}"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access one by one; ask on its page, and {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; name a branch, a tag, a commit or refs/pr/NUMBER"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository, or one that may not be seen; check the name, and if it is private {LOG_IN}"
    if status == 401:
        return f"the token is missing, wrong or too old; {LOG_IN}"
    if status == 403:
        return "the token may not do this; give it write access to this repository, or ask its owner"
    if status in (409, 412):
        return "the repository was changed meanwhile; run the same command again"
    return None


def reason(error: BaseException) -> str:
    """Return in one line what happened when the Hub was asked, and what to do."""
    words = refusal(error)
    while error.__cause__ is not None:  # the first cause says most
        error = error.__cause__
    if words is None and getattr(getattr(error, "response", None), "status_code", None) == 429:
        words = f"too many requests for now; wait some minutes, and {LOG_IN}, which allows more"
    said = (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else type(error).__name__
    )
    return words or f"{said}; check the connection and run the same command again"

"""Errors of a hub in one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_NETWORK = HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError  # the first is the HTTP library's, of any version


DOWNLOAD, PUSH = "download", "push to"


class HubError(ValueError):
    """A hub, or what was read from it, does not give what was asked for."""


class NotReachedError(HubError):
    """The hub did not answer, or was not asked, and its cache does not have what was asked for."""


@contextmanager
def explaining(doing: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Context in which errors of huggingface_hub become a `HubError`.

    Args:
        doing: `DOWNLOAD` or `PUSH`.
        name: the repository's.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # huggingface_hub, its HTTP library and the file system raise dozens of kinds here
        kind, reason = _reason(error, name, revision)
        if kind is NotReachedError and doing == DOWNLOAD:
            reason += f"; or bring the folder from another computer: `hf download {name} --local-dir FOLDER`"
        raise kind(f"cannot {doing} {name!r}: {reason}") from error


def _reason(error: BaseException, name: str, revision: str | None) -> tuple[type[HubError], str]:
    hub = constants.ENDPOINT
    if isinstance(error, LocalEntryNotFoundError):
        if error.__cause__ is not None and not isinstance(error.__cause__, OfflineModeIsEnabled):
            return _reason(error.__cause__, name, revision)
        error = OfflineModeIsEnabled()
    if isinstance(error, OfflineModeIsEnabled):
        return NotReachedError, (
            "it was not downloaded before, and local_files_only or HF_HUB_OFFLINE forbids to ask the hub; allow it once"
        )
    if isinstance(error, HFValidationError):
        return HubError, "this is no repository's name; name it user/model"
    if isinstance(error, GatedRepoError):
        return HubError, f"its owner has to grant access; ask for it at {hub}/{name}, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return HubError, f"it has no revision {revision!r}; its branches and tags are at {hub}/{name}/tree/main"
    if isinstance(error, RepositoryNotFoundError):
        return HubError, (
            f"{hub} has no such repository, or not for this user; check the name, and for a private repository log in "
            "with `hf auth login` or pass token="
        )
    if isinstance(error, HfHubHTTPError):
        return _of_status(error)
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a thread that uploads
        return _reason(error.__cause__, name, revision)
    if not isinstance(error, _NETWORK):
        return HubError, _first_line(error)
    return NotReachedError, (
        f"the connection to {hub} fails ({_first_line(error)}); check the name and the network, and run it again"
    )


def _of_status(error: HfHubHTTPError) -> tuple[type[HubError], str]:
    status = error.response.status_code
    if status == 401:
        return HubError, (
            "the hub asks for a token that it accepts; make one in its settings, then log in with `hf auth login` or "
            "pass token="
        )
    if status == 403:
        return HubError, (
            "the token may not do this; make one with write access to this user or organisation, then log in with "
            "`hf auth login` or pass token="
        )
    said = error.server_message or _first_line(error)
    if status == 429 or status >= 500:
        return NotReachedError, f"the hub is not able to serve this now (status {status}: {said}); try again later"
    return HubError, f"the hub refuses (status {status}): {said}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__

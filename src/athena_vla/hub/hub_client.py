"""The Hub, asked by its own client: what is there, one commit, one file that goes on where it was cut. In sentences.

The token is the client's (HF_TOKEN, or `hf auth login`); it goes into requests only, and is taken out of whatever a
server answers before it is shown.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from athena_vla.errors import HubError, MissingDependency
from athena_vla.hub.hub_config import RepoType
from athena_vla.hub.listing import LISTING, Listing
from athena_vla.hub.shipment import Item

WAITS = (1.0, 2.0, 4.0, 8.0)  # [s] before each new try after a cut; the client itself tries within each
MOST_LISTING = 64 * 2**20  # [bytes]
_REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<![-.])")
_LOCAL = frozenset({errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOENT})


def require_repo(name: str) -> str:
    """Raises `HubError` for what is no name on the Hub."""
    if len(name) > 96 or name.endswith(".git") or not _REPO.fullmatch(name):
        raise HubError(
            f"'{name}' is no name on the Hub: it is owner/name, each of letters, digits, '-', '_' and '.', such as "
            "someone/robot-policy."
        )
    return name


@dataclass(frozen=True)
class Remote:
    """A repository at one commit."""

    repo: str
    type: RepoType
    commit: str
    private: bool
    sizes: dict[str, int | None]  # path -> bytes, where the Hub says it


class Hub:
    """One conversation with the Hub. Raises `MissingDependency` where its client is not installed."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import utils
        except ImportError as error:
            raise MissingDependency("huggingface_hub", "hub", "for the Hugging Face Hub") from error
        utils.disable_progress_bars()
        self.client, self.utils = huggingface_hub, utils
        self.token: str | None = huggingface_hub.get_token()
        self.api = huggingface_hub.HfApi(token=self.token or False, library_name="athena-vla")

    @property
    def endpoint(self) -> str:
        return str(self.api.endpoint)

    def require_account(self) -> str:
        """The name of whoever publishes. Raises `HubError` without a token, or with one that the Hub does not know."""
        if not self.token:
            raise HubError("Nobody is logged in, so nothing can be published. Run `hf auth login`, or set HF_TOKEN.")
        with self.asked("who you are"):
            return str(self.api.whoami()["name"])

    def find(self, repo: str, kind: RepoType, revision: str) -> Remote | None:
        """What a repository holds; None where there is none, or none that this account may see."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        with self.asked(f"{kind} '{repo}'"):
            try:
                info = self.api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None
        siblings: Any = getattr(info, "siblings", None) or ()  # its type is a union with what has no files
        sizes = {str(s.rfilename): s.size for s in siblings}
        return Remote(repo, kind, str(info.sha), bool(info.private), sizes)

    def has_branch(self, repo: str, kind: RepoType, branch: str) -> bool:
        """Whether a repository that exists has this branch."""
        with self.asked(f"{kind} '{repo}'"):
            return any(b.name == branch for b in self.api.list_repo_refs(repo, repo_type=kind).branches)

    def listing(self, remote: Remote, folder: Path) -> Listing | None:
        """The listing of a repository, where it has one."""
        if LISTING not in remote.sizes:
            return None
        part = folder / f"{remote.commit[:12]}.listing"
        self.fetch(remote, LISTING, part, None, MOST_LISTING)
        return Listing.from_bytes(part.read_bytes(), remote.repo)

    def publish(
        self, repo: str, kind: RepoType, items: Sequence[Item], remove: Sequence[str], message: str, revision: str
    ) -> str:
        """One commit with all files; its address. Files that the Hub has already are not sent again."""
        hub = self.client
        operations: list[Any] = [
            hub.CommitOperationAdd(i.path, i.source if isinstance(i.source, bytes) else str(i.source)) for i in items
        ]
        operations += [hub.CommitOperationDelete(path) for path in remove]

        def commit() -> str:
            done = self.api.create_commit(
                repo, operations, commit_message=message, repo_type=kind, revision=revision, num_threads=1
            )
            return str(done.commit_url)

        with self.asked(f"{kind} '{repo}'", doing="writing"):
            return self._patiently(commit, lambda: 0)

    def create(self, repo: str, kind: RepoType, *, private: bool) -> None:
        """Make a repository, where it does not exist."""
        with self.asked(f"{kind} '{repo}'", doing="making"):
            self._patiently(
                lambda: self.api.create_repo(repo, repo_type=kind, private=private, exist_ok=True), lambda: 0
            )

    def branch(self, repo: str, kind: RepoType, name: str) -> None:
        """Make a branch."""
        with self.asked(f"branch '{name}' of {kind} '{repo}'", doing="making"):
            self.api.create_branch(repo, branch=name, repo_type=kind, exist_ok=True)

    def fetch(self, remote: Remote, path: str, into: Path, expected: int | None, most: int) -> None:
        """The bytes of one file, at most `most`; what `into` holds of the `expected` is not asked for again.

        Raises `HubError` where connections break without any progress; what came is kept.
        """
        from huggingface_hub.file_download import http_get

        if expected is None:  # nobody can say whether what is there is part of it
            into.unlink(missing_ok=True)
        url = self.client.hf_hub_url(
            remote.repo, path, repo_type=remote.type, revision=remote.commit, endpoint=self.endpoint
        )
        headers = self.utils.build_hf_headers(token=self.token or False)

        def get() -> None:
            with into.open("ab") as stream:
                http_get(
                    url,
                    cast(Any, _Capped(stream, most)),
                    resume_size=stream.tell(),
                    # Compressed answers have no ranges, and the sizes that are listed are those of the files.
                    headers={**headers, "accept-encoding": "identity"},
                    expected_size=expected,
                    displayed_filename=path,
                )

        with self.asked(f"'{path}' of {remote.type} '{remote.repo}'", kept=True):
            self._patiently(get, lambda: into.stat().st_size if into.exists() else 0)

    def _patiently(self, ask: Callable[[], Any], progress: Callable[[], int]) -> Any:
        """Ask again after a cut, as long as something came in between, and a few times where nothing did."""
        tries, before = 0, progress()
        while True:
            try:
                return ask()
            except (*self._broken, RuntimeError) as problem:
                # The client wraps what broke an upload.
                error = problem.__cause__ if isinstance(problem, RuntimeError) else problem
                if not isinstance(error, self._broken):
                    raise
                if _status(error) or _is_local(error) or isinstance(error, self._refusals):
                    raise error from None
                now = progress()
                tries, before = (0 if now > before else tries + 1), now
                if tries > len(WAITS):
                    raise error from None
                time.sleep(WAITS[max(tries - 1, 0)])

    @cached_property
    def _broken(self) -> tuple[type[BaseException], ...]:
        """What a broken connection raises: the client's HTTP library is another one in each of its versions."""
        from huggingface_hub.errors import HfHubHTTPError

        theirs = [
            c for c in HfHubHTTPError.__mro__ if c.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
        ]
        return (*theirs, OSError)

    @cached_property
    def _refusals(self) -> tuple[type[BaseException], ...]:
        """What asking again does not mend."""
        from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

        return (OfflineModeIsEnabled, EntryNotFoundError)

    @contextlib.contextmanager
    def asked(self, what: str, *, doing: str = "asking for", kept: bool = False) -> Iterator[None]:
        """Turn whatever the client raises into a sentence without the token in it."""
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

        try:
            yield
        except HubError:
            raise
        except OfflineModeIsEnabled as error:
            raise HubError("The Hub is not asked: HF_HUB_OFFLINE is set. Unset it to publish or fetch.") from error
        except (HFValidationError, ValueError) as error:
            raise HubError(f"The Hub's client refuses {what}: {self._plain(error)}") from error
        except self._broken as error:
            if _is_local(error):
                raise
            raise HubError(self._sentence(error, what, doing, kept)) from self._without_token(error)

    def _sentence(self, error: BaseException, what: str, doing: str, kept: bool) -> str:
        from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

        status, place = _status(error), self.endpoint
        said = self._plain(getattr(error, "server_message", None) or "")
        said = f" It says: {said}" if said else ""
        if isinstance(error, GatedRepoError):
            return (
                f"{place} gives {what} only to those who accepted its licence. Accept it on its page, then try again."
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{place} has no such revision of {what}. Name a branch, a tag or a commit that exists.{said}"
        if status == 401:
            return f"{place} does not know you, or not your token ({doing} {what}). Run `hf auth login` again.{said}"
        if status == 403:
            return (
                f"{place} does not let you do that ({doing} {what}): your token may not write there, or the owner is "
                f"somebody else. Make a token with write access, or name your own account.{said}"
            )
        if status == 404:
            return f"{place} has no {what}, or you may not see it.{said}"
        if status:
            return f"{place} answered {status} ({doing} {what}).{said} Try again later."
        again = " What came until now is kept: the same command goes on from it." if kept else " Try again."
        return f"{place} cannot be reached, or the connection broke ({doing} {what}; {type(error).__name__}).{again}"

    def _plain(self, text: object) -> str:
        line = " ".join(str(text).split())[:300]
        return line.replace(self.token, "***") if self.token else line

    def _without_token(self, error: BaseException) -> BaseException | None:
        """The cause for --debug, but none whose text would show the token."""
        return None if self.token and self.token in repr(error) + str(error) else error


class _Capped:
    """A file that takes no more than it was promised: a server may send whatever it likes."""

    def __init__(self, stream: Any, most: int) -> None:
        self.stream, self.most = stream, most

    def write(self, content: bytes) -> int:
        if self.stream.tell() + len(content) > self.most:
            raise HubError("The server sends more than was listed. Nothing of it is taken.")
        return int(self.stream.write(content))

    def tell(self) -> int:
        return int(self.stream.tell())

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return int(self.stream.seek(place, whence))

    def truncate(self, count: int | None = None) -> int:
        return int(self.stream.truncate(count))

    def flush(self) -> None:
        self.stream.flush()


def _status(error: BaseException) -> int:
    """The HTTP status of a refusal, 0 where there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _is_local(error: BaseException) -> bool:
    """Whether this machine's own disk said no."""
    return isinstance(error, OSError) and error.errno in _LOCAL and not _status(error)

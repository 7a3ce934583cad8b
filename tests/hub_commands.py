"""`athena push` and `athena pull` against the stand-in, here or in processes of their own as a user runs them.

Waits of the real client are cut short, and it reads in small blocks, so that small files can be cut in the middle.
Whatever a command says is searched for the token, and so is every file that it leaves.
"""

import io
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from athena_vla.cli import main
from hub_stand_in import READER, TOKEN, Hub

BLOCK = 1 << 12  # [bytes] that the client keeps at a time; 10 MB in the one that is installed
SLEEP = time.sleep
PROGRAM = f"""
import sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = {BLOCK}
from athena_vla.cli import main
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    error: str

    @property
    def sentence(self) -> str:
        """The error that a command ended with."""
        assert self.status == 2, f"{self.status}: {self.out}\n{self.error}"
        assert "Traceback" not in self.error, self.error
        return self.error.splitlines()[-1].removeprefix("athena: ")


@dataclass
class Commands:
    """Runs commands of one user at one machine, below `home`; `apart`: in processes of their own."""

    home: Path
    hub: Hub
    token: str = TOKEN
    apart: bool = False
    kill_when: threading.Event | None = None  # of a process of its own

    def run(self, *words: object, **surroundings: str) -> Said:
        here = not self.apart and set(surroundings) <= {"HF_TOKEN"}
        said = self._here(words, **surroundings) if here else self._apart(words, surroundings)
        assert not any(t in said.out + said.error for t in (TOKEN, READER)), "the token was said aloud"
        return said

    def _apart(self, words: Sequence[object], surroundings: Mapping[str, str]) -> Said:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        environment |= {"HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.home / "hf"), "NO_PROXY": "*"}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": self.token}
        environment |= surroundings
        started = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in environment.items() if v},
            cwd=self.home,
        )
        with started:
            if self.kill_when is not None:
                assert self.kill_when.wait(60)
                time.sleep(0.3)  # so that what was sent is read
                started.kill()
            out, error = started.communicate(timeout=120)
        return Said(started.returncode, out, error)

    def _here(self, words: Sequence[object], HF_TOKEN: str = TOKEN) -> Said:
        """In this process, where the client has read its surroundings already: what it keeps of them is changed."""
        from huggingface_hub import constants

        out, error = io.StringIO(), io.StringIO()
        logger = logging.getLogger("huggingface_hub")
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(error),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # of the client's own library
            patch.setattr(constants, "ENDPOINT", self.hub.endpoint)
            template = self.hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            patch.setattr(constants, "HF_TOKEN_PATH", str(self.home / "hf" / "token"))
            patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", BLOCK)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setattr(logger, "handlers", [logging.StreamHandler(error)])
            patch.setattr(time, "sleep", lambda seconds: SLEEP(min(seconds, 0.01)))
            patch.setenv("NO_PROXY", "*")
            patch.setenv("HF_TOKEN", HF_TOKEN) if HF_TOKEN else patch.delenv("HF_TOKEN", raising=False)
            patch.chdir(self.home)
            with pytest.raises(SystemExit) as left:
                main([str(w) for w in words])
        return Said(int(left.value.code or 0), out.getvalue(), error.getvalue())

    def does(self, *words: object, **surroundings: str) -> Said:
        """Runs a command that must succeed."""
        said = self.run(*words, **surroundings)
        assert said.status == 0, f"{words}\n{said.out}\n{said.error}"
        return said

    def require_silence(self) -> None:
        """The token is in no file of this machine, and in none of the Hub's."""
        kept = [f.read_bytes() for f in self.home.rglob("*") if f.is_file()]
        for token in (TOKEN.encode(), READER.encode()):
            assert token not in self.hub.everything()
            assert not any(token in content for content in kept)
        # Files come from another host, which is not told who asks.
        assert not any(a.token for a in self.hub.asked if a.path.startswith(("/cdn/", "/upload/")))

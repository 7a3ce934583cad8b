"""Optional: ask a vision model behind any OpenAI-compatible server to reword a segment; nothing here is required.

Speaks plain HTTP with the standard library. The answer is checked, never trusted: one line of text, not too long.
"""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image as PillowImage

from athena_vla.errors import DatasetError
from athena_vla.recordings.episode import Image

LONGEST_ANSWER = 300  # characters


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the error that it is: urllib would send the key to wherever it points."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirect)


@dataclass(frozen=True, kw_only=True)
class ParaphraseConfig:
    """Where the model is, and how long to wait for it."""

    url: str
    """Base address up to and including /v1."""
    model: str
    """Model name as the server knows it."""
    key: str = field(default="", repr=False)
    """Bearer token, where the server wants one; it goes to that server alone."""
    timeout: float = 60.0
    """Longest wait for one answer [s]."""
    pictures: int = 3
    """Frames of the segment that are shown."""


def paraphrase(config: ParaphraseConfig, kind: str, text: str, task: str, images: Sequence[Image]) -> str:
    """A rewording of `text`. Raises `DatasetError` where the server cannot be used or answers nonsense."""
    question = (
        f"The robot's task is: {task}\nIn these frames it does this part of it ({kind}): {text}\n"
        "Write one short imperative instruction for this part, in English. Answer with the instruction only."
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    content += [{"type": "image_url", "image_url": {"url": _data_url(i)}} for i in images]
    body = {
        "model": config.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 60,
        "temperature": 0.0,
        "seed": 0,
    }
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {config.key}"} if config.key else {}
    address = f"{config.url.rstrip('/')}/chat/completions"
    if not address.startswith(("http://", "https://")):
        raise DatasetError(f"'{config.url}' is not an http address of an OpenAI-compatible server.")
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with OPENER.open(request, timeout=config.timeout) as response:
            raw = json.loads(response.read(1 << 20))
        answer = raw["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        if moved := error.headers.get("Location"):
            raise DatasetError(
                f"'{address}' points to '{moved[:200]}' ({error.code}). Key and images are not sent there; give that "
                "address where it is the one you mean."
            ) from error
        raise DatasetError(f"'{address}' answered {error.code} {error.reason} for model '{config.model}'.") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DatasetError(f"'{address}' cannot be used to paraphrase: {type(error).__name__}: {error}") from error
    return _checked(answer, address)


def _checked(answer: Any, address: str) -> str:
    lines = [line.strip().strip('"').strip() for line in answer.splitlines()] if isinstance(answer, str) else []
    lines = [line for line in lines if line]
    if len(lines) != 1 or len(lines[0]) > LONGEST_ANSWER or not lines[0].isprintable():
        raise DatasetError(f"'{address}' did not answer with one instruction: {str(answer)[:120]!r}")
    return lines[0]


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

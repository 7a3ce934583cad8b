"""Everything that is written goes through here: whole files and folders, leftovers, locks, hashes."""

from athena_vla.files.claims import claim, require_free
from athena_vla.files.content import (
    fingerprint,
    read_json,
    read_json_object,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from athena_vla.files.leftovers import Leftover, discard, leftovers, settle
from athena_vla.files.locks import lock
from athena_vla.files.space import require_room, size_of
from athena_vla.files.whole import whole_file, whole_folder

__all__ = [
    "Leftover",
    "claim",
    "discard",
    "fingerprint",
    "leftovers",
    "lock",
    "read_json",
    "read_json_object",
    "require_free",
    "require_room",
    "settle",
    "sha256",
    "size_of",
    "whole_file",
    "whole_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

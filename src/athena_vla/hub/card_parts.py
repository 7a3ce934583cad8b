"""What every card is made of: front matter that the Hub reads, rows, and texts that stay texts."""

import json
import re
from collections.abc import Mapping, Sequence

from athena_vla.dataset.card import plain
from athena_vla.gate import Gate
from athena_vla.hub.shipment import UNKNOWN, Licences

# What the Hub takes as `license`; any other one is `other` with a name.
_SPELLED = frozenset((
    "mit", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0",
    "mpl-2.0", "odc-by", "odbl", "pddl", "llama2", "llama3", "llama3.1", "llama3.2", "gemma", "openrail",
    "unlicense", "cdla-permissive-2.0",
))  # fmt: skip
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def front_matter(fields: Mapping[str, str | Sequence[str]], licences: Licences) -> list[str]:
    """YAML lines; a JSON text is a YAML text, so that no value is anything but a text."""
    entries = dict[str, str | Sequence[str]](fields)
    if licences.name != UNKNOWN:
        spelled = licences.name.lower()
        entries |= {"license": spelled} if spelled in _SPELLED else {"license": "other", "license_name": licences.name}
    return ["---", *(f"{k}: {json.dumps(v)}" for k, v in entries.items() if v), "---", ""]


def licence_lines(licences: Licences, what: str) -> list[str]:
    """What may be done with it, or that nobody knows."""
    said = plain(licences.name)
    if licences.name == UNKNOWN:
        said = "not known. Nobody has said what you may do with it; ask who published it"
    lines = ["## Licence", "", f"- {what}: {said}."]
    if what != "Data":
        lines.append(f"- Data it was trained on: {plain(licences.data) or 'not stated'}.")
    return [*lines, *([f"- {licences.note}"] if licences.note else []), ""]


def gate_rows(gates: Mapping[str, Gate]) -> list[str]:
    """A table of gates."""
    if not gates:
        return ["None was measured.", ""]
    rows = [
        f"| {plain(g.label)} | {g.value:.4g} | {plain(g.bound)} | {'passed' if g.passed else '**failed**'} |"
        for g in gates.values()
    ]
    return ["| gate | value | limit | outcome |", "|---|---|---|---|", *rows, ""]


def code(*lines: str) -> list[str]:
    """Lines to run."""
    return ["```bash", *lines, "```", ""]

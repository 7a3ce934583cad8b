"""Licences of bases that are known: what may be said of a model that was made from one, when it is published."""

from dataclasses import dataclass

BUILTIN_BASES = "builtin:"  # what ships with this package has this package's licence


@dataclass(frozen=True)
class BaseLicence:
    """A licence by its name on the Hub, and what to know beside it."""

    name: str  # as the Hub spells it, such as mit
    note: str = ""


# From the README of the program that released it: code under MIT, weights derived from Llama 2.
_LLAMA2 = BaseLicence(
    "llama2",
    "The card of the base names the MIT licence, and its authors say that the weights derive from Llama 2 and are "
    "subject to the Llama 2 Community License.",
)
_KNOWN = {"openvla/openvla-7b": _LLAMA2, "openvla/openvla-v01-7b": _LLAMA2}


def base_licence(source: str) -> BaseLicence | None:
    """The licence of a base by where it came from, `builtin:NAME` or `owner/name@commit`; None where it is unknown."""
    if source.startswith(BUILTIN_BASES):
        return BaseLicence("mit")
    return _KNOWN.get(source.partition("@")[0].lower())

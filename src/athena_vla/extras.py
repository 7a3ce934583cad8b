"""Which extra of this package brings another package: read from the installed metadata, for messages."""

import re
from functools import cache
from importlib import metadata

ROOT = "athena-vla"
IMPORTED_AS = {"mcap-ros2-support": "mcap_ros2", "pyzmq": "zmq"}  # distributions whose module has another name


@cache
def extra_of() -> dict[str, str]:
    """Module name -> the first extra that installs it; empty where the package's metadata cannot be found."""
    try:
        requirements = metadata.requires(ROOT) or []
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return {}
    found: dict[str, str] = {}
    for line in requirements:
        matched = re.match(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w-]+)['\"]", line)
        if matched and matched[2] != "dev":
            name = matched[1].lower()
            found.setdefault(IMPORTED_AS.get(name, name.replace("-", "_")), matched[2])
    return found

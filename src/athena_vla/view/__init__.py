"""The view: what was recorded, and what a policy would have done, to be looked at episode by episode; edits nothing."""

from athena_vla import lazy

_HOMES = {
    "ViewConfig": "view_config",
    "ViewResult": "view_config",
    "view": "viewing",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)

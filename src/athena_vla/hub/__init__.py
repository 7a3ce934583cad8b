"""To the Hugging Face Hub and back: bundles, adapters and datasets with cards, listed and hashed file by file."""

from athena_vla import lazy

_HOMES = {
    "PullConfig": "hub_config",
    "PullResult": "hub_results",
    "PushConfig": "hub_config",
    "PushResult": "hub_results",
    "pull": "pulling",
    "push": "pushing",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)

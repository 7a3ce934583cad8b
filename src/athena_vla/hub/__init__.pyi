from athena_vla.hub.hub_config import PullConfig as PullConfig
from athena_vla.hub.hub_config import PushConfig as PushConfig
from athena_vla.hub.hub_results import PullResult as PullResult
from athena_vla.hub.hub_results import PushResult as PushResult
from athena_vla.hub.pulling import pull as pull
from athena_vla.hub.pushing import push as push

__all__ = ["PullConfig", "PullResult", "PushConfig", "PushResult", "pull", "push"]

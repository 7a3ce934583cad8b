"""A bundle of Athena-VLA as a policy of LeRobot; importing this registers it."""

from lerobot_policy_athena.configuration_athena import AthenaConfig

__all__ = ["AthenaConfig"]

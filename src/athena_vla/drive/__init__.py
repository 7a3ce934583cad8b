"""The drive stage: a policy on a robot, with a person beside it."""

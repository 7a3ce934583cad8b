"""Texts that recorders write when nobody typed anything: they tell no two tasks apart, and are not trained on."""

import re

KNOWN = {
    "perform a task", "do the task", "task", "default", "test", "none", "null", "todo", "instruction", "n/a", "na",
    "unknown", "demo", "teleop", "teleoperation", "valid", "no instruction", "no instruction recorded", "do something",
    "untitled", "single task", "dummy task", "task description", "task desc", "description", "language instruction",
    "insert task here", "enter task description", "describe your task here", "your task description", "no task",
}  # fmt: skip
PATTERN = re.compile(
    r"(?:step\s*\d+\s*[:.)]?\s*)?(?:do|perform|execute|complete)\s+(?:this|that|it|something|a task|the task|task)"
    r"|(?:task|episode|demo|test|take|recording|trial|sequence|step)[\s_\-#]*\d+"
    r"|<[^<>]*>(?:\s+\w+)?"  # a template that was never filled in
    r"|(?:\S+\s+){1,2}teleop(?:eration)?"  # the robot's name and how it was driven
)


def is_placeholder(text: str) -> bool:
    """True for a recorder's own default and for what holds no word; a single verb such as "squat" is an instruction."""
    plain = re.sub(r"\s+", " ", text).strip().rstrip(".;!").lower()
    bare = re.sub(r"[^\w\s/]", "", plain)
    return (
        bare in KNOWN or plain in KNOWN or PATTERN.fullmatch(plain) is not None or not re.search(r"[^\W\d_]{2,}", plain)
    )

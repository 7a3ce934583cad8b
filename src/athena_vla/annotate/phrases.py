"""Words for segments: several phrasings per kind around the task, chosen once per segment from a seed.

The episode's own instruction is never changed; a phrasing stands beside it.
"""

import hashlib

from athena_vla.recordings.episode import Segment

# {task} is the instruction as recorded, without its full stop; {arm} is "the right arm", "both arms" or "the arms".
PHRASES: dict[str, tuple[str, ...]] = {
    "walk": (
        "walk to where you can {task}",
        "step to the place to {task}",
        "move on your legs towards the place to {task}",
        "walk, so that you can {task}",
    ),
    "balance": (
        "keep your balance to {task}",
        "shift your weight and stay upright to {task}",
        "adjust your stance to {task}",
        "steady yourself with your legs to {task}",
    ),
    "manipulate": (
        "use {arm} to {task}",
        "{task} with {arm}",
        "handle the object with {arm} to {task}",
        "now {task}, moving {arm}",
    ),
    "prepare": (
        "bring {arm} into position to {task}",
        "get ready with {arm} to {task}",
        "reach with {arm} to {task}",
        "move {arm} to where you can {task}",
    ),
    "coordinate": (
        "walk while holding on, to {task}",
        "carry on walking with your arms in place, to {task}",
        "keep hold and step on, to {task}",
        "walk and keep {arm} steady, to {task}",
    ),
    "idle": (
        "hold still before you {task}",
        "wait and watch, ready to {task}",
        "stay as you are, ready to {task}",
        "observe the scene, ready to {task}",
    ),
}


def phrase(segment: Segment, task: str, episode_id: str, seed: int) -> str:
    """One phrasing for the segment: the same for all its frames, and the same in every run with this seed."""
    choices = PHRASES.get(segment.kind)
    if choices is None or segment.source in ("human", "simulator"):
        return segment.text
    key = f"{seed}|{episode_id}|{segment.start}|{segment.kind}".encode()
    chosen = choices[int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % len(choices)]
    plain = task.strip().rstrip(".!")
    plain = plain[:1].lower() + plain[1:] if plain[1:2].islower() or plain[1:2] == " " else plain
    return chosen.format(task=plain or "do the task", arm=_arm(segment.text))


def _arm(text: str) -> str:
    for side in ("left", "right"):
        if f"the {side} arm" in text:
            return f"the {side} arm"
    return "both arms" if "both arms" in text else "your arms"

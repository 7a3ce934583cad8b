"""Words for segments: each keeps verb and object of its task, in one clause, without politeness or address.

Chosen once per segment from a seed. The episode's own instruction is never changed; a phrasing stands beside it.
"""

import hashlib
import re

from athena_vla.recordings.episode import Segment

# {task} is the instruction in its plain form; {arm} is "the right arm", "both arms" or "your arms".
PHRASES: dict[str, tuple[str, ...]] = {
    "walk": ("walk over to {task}", "walk on to {task}", "walk there to {task}"),
    "balance": (
        "{task} while keeping your balance",
        "{task} without losing your balance",
        "{task}, staying upright",
        "{task}, keeping your weight balanced",
    ),
    "manipulate": ("{task}", "now {task}", "proceed to {task}", "continue to {task}"),
    "prepare": ("get ready to {task}", "prepare to {task}", "start to {task}"),
    "coordinate": ("{task} while walking", "{task} as you walk along", "{task}, still walking"),
    "idle": ("wait to {task}", "stand ready to {task}", "hold still before you {task}", "be ready to {task}"),
}
WITH_ARM: dict[str, tuple[str, ...]] = {  # where the task is one of hands and does not say which
    "manipulate": ("{task} with {arm}", "{task}, using {arm}", "using {arm}, {task}"),
    "prepare": ("get ready to {task} with {arm}", "prepare to {task}, using {arm}", "with {arm}, start to {task}"),
}
OF_A_WALK: dict[str, tuple[str, ...]] = {  # where the task itself is to walk
    "walk": ("{task}", "{task}, step by step", "{task} at an even pace"),
    "coordinate": ("{task}, holding on", "{task}, your arms kept steady", "{task} with your load kept steady"),
}
OF_AN_OBJECT = {  # where a simulator names one that the task does not
    "reach for": "reach for the {object} to {task}",
    "go on to": "go on to the {object} to {task}",
    "handle": "handle the {object} to {task}",
}
AFTERWARDS: dict[str, tuple[str, ...]] = {  # where a simulator saw that the task was done
    "draw back": ("draw back after you {task}", "move away after you {task}", "withdraw after you {task}"),
    "stay as you are": ("hold still after you {task}", "stay as you are after you {task}", "wait after you {task}"),
}
GENERIC = "object"

WALKS = frozenset(("walk", "step", "go", "run", "march", "stride", "carry", "approach", "follow", "dance"))
HANDS = frozenset(
    (
        *(
            "touch",
            "tap",
            "put",
            "lay",
            "place",
            "set",
            "pick",
            "take",
            "grab",
            "grasp",
            "hold",
            "move",
            "push",
            "shove",
        ),
        *(
            "pull",
            "press",
            "open",
            "close",
            "lift",
            "stack",
            "insert",
            "pour",
            "point",
            "reach",
            "hand",
            "give",
            "drop",
        ),
        *("unload", "load", "wipe", "fold", "slide", "hang", "screw", "sort", "bring", "throw"),
        *("catch", "cover"),
    )
)
BODY = re.compile(r"\b(arm|hand|leg|foot|feet|knee|finger|gripper|elbow|wrist|shoulder|camera|head|body)s?\b")
_POLITE = r"please|kindly"
_ASKED = rf"(?:can|could|would|will) you(?: (?:{_POLITE}))?|i (?:want|need|would like) you to|i'd like you to"
_ADDRESSED = r"(?:(?:hey|hi|hello|ok|okay|dear)[, ]+)?(?:robot|humanoid|assistant|buddy|hey|hi|hello|okay|ok)"
_BEFORE = re.compile(rf"^(?:{_ASKED}|{_POLITE}|{_ADDRESSED})\b[,:]?\s+", re.IGNORECASE)
_AFTER = re.compile(rf"[\s,]*(?:\b(?:{_POLITE}|thanks|thank you|for me|will you|would you)\b)?[\s.!?]*$", re.IGNORECASE)


def plain_task(task: str, name: str = "") -> str:
    """An instruction without politeness, question and address: "Robot, could you please squat?" -> "squat".

    `name` is what the robot is called.
    """
    text = " ".join(task.split())
    called = re.compile(rf"^(?:hey |hi |hello |ok |okay )?{re.escape(name)}[,:]\s+", re.IGNORECASE) if name else None
    before = ""
    while text != before:
        before = text
        text = _AFTER.sub("", _BEFORE.sub("", text))
        text = called.sub("", text) if called else text
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def phrase(segment: Segment, task: str, episode_id: str, seed: int, name: str = "", *, measured: bool = True) -> str:
    """One phrasing for the segment: the same for all its frames, and the same in every run with this seed.

    What a recording says itself, which is not `measured`, stays as it is. `name` is what the robot is called.
    """
    plain = plain_task(task, name)
    if segment.kind not in PHRASES or not plain or (not measured and segment.source in ("human", "simulator")):
        return segment.text
    does, _, thing = segment.text.partition(" the ")
    if does in OF_AN_OBJECT and thing != GENERIC and thing not in plain:
        return OF_AN_OBJECT[does].format(object=thing, task=plain)
    key = f"{seed}|{episode_id}|{segment.start}|{segment.kind}".encode()
    choices = _choices(segment, plain)
    chosen = choices[int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % len(choices)]
    return chosen.format(task=plain, arm=_arm(segment.text))


def _choices(segment: Segment, plain: str) -> tuple[str, ...]:
    verb = plain.partition(" ")[0].lower()
    if segment.text in AFTERWARDS:
        return AFTERWARDS[segment.text]
    if verb in WALKS and segment.kind in OF_A_WALK:
        return OF_A_WALK[segment.kind]
    if _arm(segment.text) and verb in HANDS and not BODY.search(plain):
        return WITH_ARM.get(segment.kind, PHRASES[segment.kind])
    return PHRASES[segment.kind]


def _arm(text: str) -> str:
    """The arm that a segment of motion rules names; "" where it names none."""
    return next((arm for arm in ("the left arm", "the right arm", "both arms") if arm in text), "")

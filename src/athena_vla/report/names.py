"""How actors are called on the page."""

LABELS = {
    "tuned": "tuned",
    "untuned": "untuned base",
    "hold": "hold still",
    "mean_action": "mean action",
    "nearest_neighbour": "nearest neighbour",
    "replay": "replay",
    "tuned.black_image": "tuned, black image",
    "tuned.other_instruction": "tuned, other instruction",
    "int8": "tuned, int8 ONNX",
    "int4": "tuned, int4 ONNX",
    "hostile": "random jumps",
}
DETAILS = {
    "tuned": "LoRA, float",
    "untuned": "the same weights before fine-tuning",
    "hold": "never moves",
    "mean_action": "mean of all demonstrations",
    "int8": "8-bit weights",
    "int4": "4-bit weights",
}


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))

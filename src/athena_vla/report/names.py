"""How actors are called on the page, what each row means, and the colour that is theirs in every chart."""

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
REASONS = {
    "tuned": "It sees the scene and reads the instruction.",
    "int8": "The same policy with weights in 8 bits.",
    "int4": "The same policy with weights in 4 bits.",
    "untuned": "The same weights before fine-tuning: it never saw this robot's demonstrations.",
    "nearest_neighbour": "It plays the demonstration whose instruction and first image are most alike.",
    "replay": "It plays a demonstration of the same task without looking: enough where only the wording is new.",
    "mean_action": "It always commands the mean of all demonstrations.",
    "hold": "It never moves; what it solves was solved at the start.",
}
COLOURS = {
    "tuned": "var(--s1)",
    "untuned": "var(--s2)",
    "nearest_neighbour": "var(--s3)",
    "replay": "var(--s4)",
    "mean_action": "var(--s5)",
    "hold": "var(--s6)",
}
STEP_NAMES = {
    "record": "Record demonstrations",
    "prepare": "Check, annotate, build",
    "train": "Fine-tune with LoRA",
    "compare": "Compare with baselines",
    "safety": "Provoke the safety filter",
    "deploy": "Merge, quantise, export",
    "bench": "Benchmark and predict",
    "serve": "Serve over a socket",
    "report": "Write this page",
}
OURS = ("tuned", "int8", "int4")  # rows that are drawn in the accent colour


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def joint_label(name: str) -> str:
    return name.replace("_", " ")


def step_name(name: str) -> str:
    return STEP_NAMES.get(name, name)

"""A small tokenizer of Llama's structure, generated from a word list of our own: no licence but this package's.

BOS in front, '▁' for spaces, byte fallback for everything else, action ids at the top, <PAD> behind them. Common robot
words are single tokens. The same call gives the same bytes.
"""

import json
from functools import cache

TINY_VOCABULARY = 1536  # text and action tokens; the padding token is the next id
TINY_ROWS = 1600  # padded by 64, as the released table is
_ACTIONS = 256

# Every word becomes one token "▁word"; the first line belongs to the prompt templates.
_WORDS = """
In What action should the robot take to USER ASSISTANT: Out and
touch point at look lift raise lower squat stand wave push pull carry pick up put place open close grab hold give hand
move turn walk run step stop go reach release drop throw catch kick bend lean nod shake rotate twist press slide stack
follow bring keep find show tap hit clap bow sit crouch balance stay rest wait return start reset tidy pour wipe clean
your my its a an of on in into onto over under above below behind beside between near next from with without for by then
while before after again slowly quickly gently carefully down left right forward backward back up front side top bottom
middle center upper away around across toward towards together both one two three four five first second last other all
red green blue yellow orange purple violet pink cyan magenta white black gray grey brown gold silver dark light bright
cube ball sphere box block cylinder cone pyramid ring disc disk capsule bottle cup mug bowl plate can table shelf door
drawer handle button switch lever lid bin basket tray wall floor ground chair object thing target tool toy marker
cloth towel spoon fork knife apple banana lemon carrot bread pot pan stove sink fridge cabinet box basket bag book
arm arms leg legs hand hands foot feet knee knees elbow elbows shoulder shoulders wrist wrists hip hips ankle ankles
head neck torso waist chest finger fingers palm body gripper camera joint joints
high low higher lower big small large little tall short long wide empty full open closed straight still upright ready
it is are this that there here which where robot person human position pose home task object objects word color colour
shape distance image
"""


@cache
def tiny_tokenizer_files(vocabulary_size: int = TINY_VOCABULARY) -> dict[str, bytes]:
    """The files of a released tokenizer directory, by name; other sizes only have more tokens that nothing makes."""
    vocabulary: dict[str, int] = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for character in ["▁", *(chr(c) for c in range(33, 127))]:
        vocabulary[character] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    # Each merge adds one character to a beginning, so a word is a walk down a tree and merges never compete.
    for word in ["▁" + w for w in dict.fromkeys(_WORDS.split())] + ["Out:"]:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    first_action = vocabulary_size - _ACTIONS
    assert len(vocabulary) <= first_action, f"{len(vocabulary)} text tokens do not fit below {first_action}"
    while len(vocabulary) < first_action:
        vocabulary[f"<free{len(vocabulary)}>"] = len(vocabulary)
    for i in range(_ACTIONS):
        vocabulary[f"<action{i}>"] = len(vocabulary)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special(0, "<unk>"),
            _special(1, "<s>"),
            _special(2, "</s>"),
            _special(vocabulary_size, "<PAD>"),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            # One string per merge: newer tokenizers write pairs, which the one the reference needs cannot read.
            "merges": [" ".join(m) for m in merges],
        },
    }
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<PAD>",
        "padding_side": "right",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _special(number: int, text: str) -> dict[str, object]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }

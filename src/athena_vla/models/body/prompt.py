"""Instruction to token ids: the two prompt templates of the released models, over a Hugging Face `tokenizer.json`.

Knows nothing of images or actions; action ids are never made from text.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Literal

from tokenizers import Tokenizer

from athena_vla.errors import InvalidObservation, ModelError

Template = Literal["pure", "vicuna"]  # openvla-7b: In/Out; openvla-v01-7b: USER/ASSISTANT

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BOS, EOS = 1, 2


class Prompter:
    """Prompts of one model. `limit` is the number of tokens that still leave room for images and actions."""

    def __init__(self, tokenizer_files: Mapping[str, bytes], template: Template, limit: int) -> None:
        if "tokenizer.json" not in tokenizer_files:
            raise ModelError(
                f"A model needs 'tokenizer.json'; it came with {sorted(tokenizer_files) or 'no tokenizer files'}."
            )
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_files["tokenizer.json"].decode())
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"'tokenizer.json' cannot be read: {error}.") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.files = dict(tokenizer_files)
        self.template: Template = template
        self.limit = limit

    @cached_property
    def space(self) -> int:
        """The id of a lone '▁' (29871 for Llama 2), which stands between prompt and answer in training."""
        found = self.tokenizer.token_to_id("▁")
        if found is None:
            raise ModelError("The tokenizer has no '▁' token: it is not of Llama's kind.")
        return found

    @cached_property
    def pad(self) -> int:
        """Id of the padding token, declared in `tokenizer_config.json` or named <PAD>."""
        config = json.loads(self.files.get("tokenizer_config.json", b"{}"))
        declared = config.get("pad_token", "<PAD>")
        name = declared["content"] if isinstance(declared, dict) else declared
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise ModelError(f"The tokenizer has no padding token '{name}'.")
        return found

    def text(self, instruction: str) -> str:
        """The prompt up to where the answer begins. Raises `InvalidObservation` for an empty instruction."""
        if not instruction.strip():
            raise InvalidObservation("The instruction is empty; say what the robot should do.")
        question = f"What action should the robot take to {instruction.lower()}?"
        if self.template == "vicuna":
            return f"{_VICUNA_SYSTEM} USER: {question} ASSISTANT:"
        return f"In: {question}\nOut:"

    def encode(self, text: str) -> list[int]:
        """Ids of any text, BOS first."""
        return self.tokenizer.encode(text).ids

    def ids(self, instruction: str) -> list[int]:
        """Prompt ids without the separating space, as a processor returns them.

        Raises `InvalidObservation` for an instruction that is too long for the model.
        """
        # Longer than any token could be: refuse before spending seconds on it.
        if len(instruction) > 64 * self.limit:
            raise InvalidObservation(
                f"The instruction has {len(instruction)} characters; this model takes {self.limit} tokens. Shorten it."
            )
        ids = self.encode(self.text(instruction))
        if len(ids) >= self.limit:
            raise InvalidObservation(
                f"The prompt has {len(ids)} tokens; this model takes {self.limit}. Shorten the instruction."
            )
        return ids

    def answer_ids(self, instruction: str) -> list[int]:
        """Prompt ids that an answer follows directly: the separating space is appended where it is missing."""
        ids = self.ids(instruction)
        return ids if ids[-1] == self.space else [*ids, self.space]

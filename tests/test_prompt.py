"""Prompts and the shipped tokenizer: structure of Llama's, single tokens for robot words, any text encodes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena_vla.errors import InvalidObservation, ModelError
from athena_vla.models.body.prompt import BOS, EOS, Prompter
from athena_vla.models.body.tiny_tokenizer import TINY_ROWS, TINY_VOCABULARY, tiny_tokenizer_files

PROMPTER = Prompter(tiny_tokenizer_files(), "pure", 128)


def test_the_file_is_the_same_every_time_and_small() -> None:
    first = tiny_tokenizer_files()["tokenizer.json"]
    tiny_tokenizer_files.cache_clear()
    assert tiny_tokenizer_files()["tokenizer.json"] == first
    assert len(first) < 60_000
    assert TINY_ROWS == TINY_VOCABULARY + 64


@pytest.mark.parametrize(
    "word", ["red", "cube", "cylinder", "touch", "lift", "left", "elbow", "knees", "orange", "squat", "the", "wave"]
)
def test_robot_words_are_single_tokens(word: str) -> None:
    assert len(PROMPTER.encode(word)) == 2


def test_the_prompt_is_short_and_ends_with_the_space() -> None:
    ids = PROMPTER.answer_ids("touch the red cube")
    assert ids[0] == BOS
    assert ids[-1] == PROMPTER.space
    assert ids[-1] not in PROMPTER.ids("touch the red cube")[-1:]
    assert len(ids) == 18
    assert PROMPTER.tokenizer.decode(ids) == "In: What action should the robot take to touch the red cube?\nOut: "


def test_capitals_are_lowered() -> None:
    assert PROMPTER.ids("Touch the RED cube") == PROMPTER.ids("touch the red cube")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), min_size=1, max_size=20))
def test_any_text_encodes_and_comes_back(text: str) -> None:
    if any(special in text for special in ("<s>", "</s>", "<unk>", "<PAD>")):
        return
    ids = PROMPTER.tokenizer.encode(text, add_special_tokens=False).ids
    assert 0 not in ids
    assert max(ids) < TINY_VOCABULARY - 256
    assert PROMPTER.tokenizer.decode(ids) == text


def test_text_never_makes_action_tokens_or_padding() -> None:
    vocabulary = json.loads(tiny_tokenizer_files()["tokenizer.json"])["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(TINY_VOCABULARY))
    assert PROMPTER.pad == TINY_VOCABULARY
    assert PROMPTER.tokenizer.token_to_id("</s>") == EOS


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_instructions_are_refused(text: str) -> None:
    with pytest.raises(InvalidObservation, match="empty"):
        PROMPTER.ids(text)


def test_long_instructions_are_refused_quickly() -> None:
    words = " ".join(np.random.default_rng(0).choice(["pick", "up", "cube"], 10_000))
    with pytest.raises(InvalidObservation, match="Shorten"):
        PROMPTER.ids(words)
    with pytest.raises(InvalidObservation, match="takes 128"):
        PROMPTER.ids("go " * 130)


def test_files_that_are_no_tokenizer() -> None:
    with pytest.raises(ModelError, match="no tokenizer files"):
        Prompter({}, "pure", 10)
    with pytest.raises(ModelError, match="cannot be read"):
        Prompter({"tokenizer.json": b"{}"}, "pure", 10)
    files = tiny_tokenizer_files()
    config = {**json.loads(files["tokenizer_config.json"]), "pad_token": {"content": "<nope>"}}
    with pytest.raises(ModelError, match="<nope>"):
        _ = Prompter({**files, "tokenizer_config.json": json.dumps(config).encode()}, "pure", 10).pad

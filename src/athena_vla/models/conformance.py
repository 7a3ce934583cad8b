"""Released checkpoints behind one small surface, behaving as the reference code does, quirks included.

For comparison with golden vectors and for running a released model as it is: `load` an OpenVLA or OpenVLA-OFT folder,
then ask it for pixels, ids, logits or actions. Where the toolkit's own families differ on purpose (NaN, an early end
token), this module follows the reference. Training, export and serving use the families instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from athena_vla.errors import InvalidObservation, ModelError, UnknownName
from athena_vla.models.action_tokens import ActionTokens
from athena_vla.models.body.images import pixels
from athena_vla.models.body.llama import attention_mask
from athena_vla.models.body.prompt import EOS, Prompter
from athena_vla.models.openvla_oft import placeholder_states
from athena_vla.models.released import dataset_statistics as statistics
from athena_vla.models.released import oft_files
from athena_vla.models.released import released_weights as checkpoint
from athena_vla.models.released.oft_files import PLATFORMS, OftParts

IGNORE = -100
Images = Image.Image | NDArray[Any] | Sequence[Image.Image | NDArray[Any]]
Platform = Literal["libero", "aloha", "bridge"]
Stats = statistics.Statistics

_LLAMA_2 = ActionTokens(32000)


def encode_action(action: ArrayLike) -> NDArray[np.int64]:
    """Action ids of normalised actions, as the reference: NaN becomes the id of +1."""
    return _LLAMA_2.encode_compatible(np.asarray(action))


def decode_action(ids: ArrayLike) -> NDArray[np.float64]:
    """Bin centres of ids; ids outside the action range take the nearest bin."""
    return _LLAMA_2.decode(np.asarray(ids))


def normalize(x: ArrayLike, stats: Stats, kind: statistics.Kind = "bounds_q99") -> NDArray[np.floating]:
    """Training's normalisation with q01 and q99, or another of the reference's three."""
    return statistics.normalize(np.asarray(x), stats, kind)


def unnormalize(x: ArrayLike, stats: Stats, kind: statistics.Kind = "bounds_q99") -> NDArray[np.floating]:
    """Back to physical values, as OpenVLA does it (OFT adds 1e-8 to the range, `predict_action` does that)."""
    return statistics.unnormalize(np.asarray(x), stats, kind)


def load(path: str | Path, dtype: checkpoint.Precision = "float32", platform: str | None = None) -> "Checkpoint":
    """Open a checkpoint folder. An OFT folder needs the platform, which its files do not say.

    Raises `ModelError` for anything that is not whole, `UnknownName` for a platform that does not exist.
    """
    if platform is not None and platform not in PLATFORMS:
        raise UnknownName("OFT platform", platform, PLATFORMS)
    raw = checkpoint.load(path, dtype)
    found = oft_files.find(raw.folder)
    if platform is None and found.any:
        raise ModelError(
            f"'{raw.folder}' is an OpenVLA-OFT checkpoint ({', '.join(found.names)}); chunk length and normalisation "
            f"are not stored in it. Pass platform= one of {', '.join(PLATFORMS)}."
        )
    parts = oft_files.load(found, raw.spec.text.width, dtype) if platform else None
    prompter = Prompter(raw.tokenizer_files, raw.spec.template, raw.spec.max_prompt_tokens)
    return Checkpoint(raw, prompter, ActionTokens(raw.spec.text.vocabulary), platform, parts)


@dataclass(frozen=True)
class Checkpoint:
    """A released model. Arrays in and out are numpy; one observation at a time unless said otherwise."""

    raw: checkpoint.Checkpoint
    prompter: Prompter
    tokens: ActionTokens
    platform: str | None
    parts: OftParts | None

    def pixel_values(self, image: Images) -> NDArray[np.float32]:
        """`[1, 3 * towers * images, height, width]`, no crop at evaluation."""
        views = [image] if isinstance(image, Image.Image | np.ndarray) else list(image)
        if not views:
            raise InvalidObservation("There is no image in the list; the model needs at least one.")
        return np.concatenate([pixels(view, self.raw.spec.images) for view in views])[None]

    def input_ids(self, instruction: str) -> list[int]:
        """The prompt as the processor returns it: without the separating 29871 that prediction appends."""
        return self.prompter.ids(instruction)

    def patches(self, pixel_values: ArrayLike) -> NDArray[np.float32]:
        """Patch embeddings after the projector, `[b, patches, width]`."""
        with torch.inference_mode():
            return _array(self._vision(self._pixels(pixel_values, None)))

    def logits(self, pixel_values: ArrayLike | None, input_ids: ArrayLike) -> NDArray[np.float32]:
        """Logits of every position `[b, patches + tokens, rows]`; without pixels, of the text alone."""
        ids = self._ids(input_ids)
        with torch.inference_mode():
            patches = None if pixel_values is None else self._vision(self._pixels(pixel_values, len(ids)))
            return _array(self._logits(patches, ids, torch.ones_like(ids, dtype=torch.bool)))

    def loss(self, pixel_values: ArrayLike, input_ids: ArrayLike, labels: ArrayLike) -> float:
        """Mean cross entropy over labelled tokens of a right-padded batch."""
        with torch.inference_mode():
            return float(self.loss_tensor(pixel_values, input_ids, labels))

    def loss_tensor(self, pixel_values: ArrayLike, input_ids: ArrayLike, labels: ArrayLike) -> Tensor:
        """The same with its gradient. OFT zeroes the embeddings of the action tokens it predicts."""
        ids, wanted = self._ids(input_ids), self._ids(labels)
        if ids.shape != wanted.shape:
            raise InvalidObservation(f"input_ids {list(ids.shape)} and labels {list(wanted.shape)} differ in shape.")
        patches = self._vision(self._pixels(pixel_values, len(ids)))
        hidden_actions = wanted >= self.tokens.first if self.platform else None
        logits = self._logits(patches, ids, ids != self.prompter.pad, hidden_actions)
        # Patches stand between BOS and the rest and carry no label.
        blank = torch.full((len(ids), patches.shape[1]), IGNORE)
        full = torch.cat([wanted[:, :1], blank, wanted[:, 1:]], dim=1)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), full[:, 1:].flatten(), ignore_index=IGNORE)

    def training_example(self, image: Images, instruction: str, action: ArrayLike) -> dict[str, Any]:
        """One supervised example from a normalised action `[d]` or chunk `[h, d]`: ids, labels and pixels.

        The prompt, the separating space, one id per value, the end token; the prompt carries no label.
        """
        # The reference's prompt builder removes image markers and outer spaces, its evaluation does not.
        prompt = self.prompter.answer_ids(instruction.lower().replace("<image>", ""))
        answer = self.tokens.encode_compatible(np.asarray(action)).reshape(-1).tolist()
        return {
            "input_ids": [*prompt, *answer, EOS],
            "labels": [IGNORE] * len(prompt) + [*answer, EOS],
            "pixel_values": self.pixel_values(image),
        }

    def predict_ids(
        self, image: Images, instruction: str, unnorm_key: str | None = None, proprio: ArrayLike | None = None
    ) -> list[int]:
        """Generated token ids. OpenVLA: greedy, one after the other, up to and with an end token. OFT: in parallel."""
        key = statistics.choose(self.raw.norm_stats, unnorm_key)
        with torch.inference_mode():
            if self.platform is None:
                return self._generate(image, instruction, self._action_dim(key))
            hidden = self._placeholders(image, instruction, key, proprio)
            return self.raw.body.language_model.lm_head(hidden)[0].argmax(dim=1).tolist()

    def predict_action(
        self, image: Images, instruction: str, unnorm_key: str | None = None, proprio: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Action `[d]` in physical units, for OFT the chunk `[h, d]`. `proprio` is raw, in physical units."""
        key = statistics.choose(self.raw.norm_stats, unnorm_key)
        stats = self.raw.norm_stats[key]["action"]
        if self.platform is None:
            ids = [*self.prompter.answer_ids(instruction), *self.predict_ids(image, instruction, key)]
            # After an early end token the reference reads prompt tokens as actions.
            unit = self.tokens.decode(np.array(ids[-self._action_dim(key) :]))
            return statistics.unnormalize(unit, stats).astype(np.float64)
        assert self.parts is not None
        kind, width = PLATFORMS[self.platform].kind, self._action_dim(key)
        if self.parts.head is None:
            ids = np.array(self.predict_ids(image, instruction, key, proprio))
            unit = self.tokens.decode(ids).reshape(-1, width)
        else:
            with torch.inference_mode():
                unit = _array(self.parts.head(self._placeholders(image, instruction, key, proprio)))[0]
        return statistics.unnormalize(unit, stats, kind, guarded=True).astype(np.float64)

    def _action_dim(self, key: str) -> int:
        stats = self.raw.norm_stats[key]["action"]
        return len(stats["q01"] if "q01" in stats else stats["min"])

    def _generate(self, image: Images, instruction: str, count: int) -> list[int]:
        language = self.raw.body.language_model
        ids = self._ids(self.prompter.answer_ids(instruction))
        x, valid = self.raw.body.splice(
            self._vision(self._pixels(self.pixel_values(image), 1)), ids, torch.ones_like(ids, dtype=torch.bool)
        )
        slot, end = 0, x.shape[1]
        keys, values = language.room(x, end + count), language.room(x, end + count)
        found: list[int] = []
        while True:
            hidden, key, value = language.extend(x, valid, torch.tensor([slot]), keys, values)
            found.append(int(language.lm_head(hidden[:, -1]).argmax()))
            if found[-1] == EOS or len(found) == count:
                return found
            keys[:, :, :, slot:end], values[:, :, :, slot:end] = key, value
            slot, end = end, end + 1
            x, valid = language.embed(torch.tensor([[found[-1]]])), torch.ones(1, 1, dtype=torch.bool)

    def _placeholders(self, image: Images, instruction: str, key: str, proprio: ArrayLike | None) -> Tensor:
        assert self.platform is not None
        assert self.parts is not None
        token = None
        if proprio is not None:
            if self.parts.proprio is None:
                raise ModelError(f"'{self.raw.folder}' has no proprio projector; it takes no state.")
            stats: Mapping[str, Any] = self.raw.norm_stats[key]["proprio"]
            unit = statistics.normalize_proprio(np.asarray(proprio).reshape(-1), stats, PLATFORMS[self.platform].kind)
            weight = self.parts.proprio.fc1.weight
            token = self.parts.proprio(torch.from_numpy(unit)[None].to(weight.dtype))
        ids = self._ids(self.prompter.answer_ids(instruction))
        patches = self._vision(self._pixels(self.pixel_values(image), 1))
        count = PLATFORMS[self.platform].horizon * self._action_dim(key)
        return placeholder_states(self.raw.body, patches, ids, torch.ones_like(ids, dtype=torch.bool), token, count)

    def _logits(self, patches: Tensor | None, ids: Tensor, valid: Tensor, blank: Tensor | None = None) -> Tensor:
        body = self.raw.body
        if patches is None:
            patches = body.language_model.embed(ids)[:, :0]
        x, seen = body.splice(patches, ids, valid)
        if blank is not None:
            gap = torch.zeros_like(blank[:, :1]).expand(-1, patches.shape[1])
            hidden_rows = torch.cat([blank[:, :1], gap, blank[:, 1:]], dim=1)
            x = x.masked_fill(hidden_rows[:, :, None], 0)
        mask = attention_mask(seen, causal=self.platform is None)
        positions = torch.arange(x.shape[1])[None].expand(len(ids), -1)
        return body.language_model.lm_head(body.language_model(x, mask, positions))

    def _vision(self, values: Tensor) -> Tensor:
        return self.raw.body.vision(values)

    def _pixels(self, values: ArrayLike, batch: int | None) -> Tensor:
        """Pixels as a batch; with a known batch size, any stack of its examples."""
        x = torch.as_tensor(np.asarray(values, dtype=np.float32))
        if x.ndim < 3 or (batch is not None and x.numel() % batch):
            raise InvalidObservation(f"Pixels of shape {list(x.shape)} do not make {batch or 'a batch of'} images.")
        weight = self.raw.body.language_model.model.norm.weight
        x = x.reshape(batch or (x.shape[0] if x.ndim > 3 else 1), -1, *x.shape[-2:])
        if x.shape[1] % self.raw.spec.images.channels:
            raise InvalidObservation(
                f"Pixels have {x.shape[1]} channels per example; this model takes a multiple of "
                f"{self.raw.spec.images.channels}."
            )
        return x.to(weight.dtype)

    def _ids(self, ids: ArrayLike) -> Tensor:
        x = torch.as_tensor(np.asarray(ids, dtype=np.int64))
        return x if x.ndim == 2 else x.reshape(1, -1)


def _array(x: Tensor) -> NDArray[np.float32]:
    return x.float().cpu().numpy()

"""Grounding: images, "find the red cube" -> where it is, read out by the tokens that later read out actions.

Used by train_base.py only. Losses beside the place itself make words find pixels in minutes on one core: every patch
must resemble the words for what it shows, and attention is shown where to look (docs/experiments.md has the losers).
"""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from athena_vla.dataset.normalize import Normalizer
from athena_vla.models.body.images import DINOV2_MEAN, DINOV2_STD
from athena_vla.models.body.llama import rotary, rotate
from athena_vla.models.openvla_chunk import OpenVLAChunk
from athena_vla.sim.scene import COLOURS, SHAPES

HORIZON = 8
# No verb of the demo's tasks; the object stands at different places of the sentence.
TEMPLATES = (
    *("find the {o}", "show the {o}", "show me the {o}", "where is the {o}", "hover over the {o}", "the {o}"),
    *("reach next to the {o}", "turn towards the {o}", "turn to face the {o}", "go near the {o}", "the {o} here"),
    *("bring your hand near the {o}", "find the {o} on the table", "please find the {o}", "robot, show me the {o}"),
    *("keep the {o} in place", "please keep your hand near the {o} and wait", "robot, find the {o} again"),
    *(
        "with the {o} in front",
        "move your hand above the {o}",
        "rotate your body to the {o}",
        "robot, show the {o} now",
    ),
)
# What positions in the pelvis frame are divided by. [m]
MIDDLE, SPREAD = (0.42, 0.0, 0.10), (0.10, 0.25, 0.10)
NOUN_LAYERS, HEAD = (1, 2), 0  # where attention is guided: the shape's word here, the queries in the last layer


class Questions(nn.Module):
    """What only base training needs: heads that are thrown away, and the packing of three questions into a sequence."""

    def __init__(self, model: OpenVLAChunk) -> None:
        super().__init__()
        width = model.body_spec.text.width
        self.model = model
        self.place = nn.Linear(width, 5)  # u, v in the image; x, y, z from the pelvis
        self.background = nn.Parameter(torch.randn(1, width) * 0.5)
        self.prefix = model.prompter.encode("In: What action should the robot take to")
        self.colour_ids = torch.tensor([model.prompter.encode(c)[-1] for c in COLOURS])
        self.shape_ids = torch.tensor([model.prompter.encode(s)[-1] for s in SHAPES])
        self.known: dict[str, list[int]] = {}
        self.seen: dict[int, Tensor] = {}  # normed input of each decoder layer, of the last forward pass
        for number, layer in enumerate(model.body.language_model.model.layers):
            layer.input_layernorm.register_forward_hook(self._keep(number))

    def _keep(self, number: int):
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.seen[number] = output

        return hook

    def words(self, colour: int, shape: int, template: int) -> tuple[list[int], int]:
        """Ids after the shared prefix, and where the shape's word is."""
        text = TEMPLATES[template].format(o=f"{tuple(COLOURS)[colour]} {SHAPES[shape]}")
        if text not in self.known:
            ids = self.model.prompter.answer_ids(text)
            assert ids[: len(self.prefix)] == self.prefix
            self.known[text] = ids[len(self.prefix) :]
        ids = self.known[text]
        return ids, ids.index(int(self.colour_ids[colour])) + 1

    def forward(self, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
        """Loss of a batch of images; three questions per image in one sequence, blind to each other."""
        model, width = self.model, self.place.in_features
        table = model.body.language_model.embed
        patches = model.body.vision(batch["pixels"])
        state = model.state_projector(batch["state"])
        count, spots = len(patches), patches.shape[1]
        steps = torch.from_numpy(np.sort(rng.choice(HORIZON, 2, replace=False)))
        asked = [
            [self.words(int(c), int(s), int(rng.integers(len(TEMPLATES)))) for c, s in zip(cs, ss, strict=True)]
            for cs, ss in zip(batch["colours"], batch["shapes"], strict=True)
        ]
        lengths = torch.tensor([[len(ids) for ids, _ in row] for row in asked])
        nouns = torch.tensor([[noun for _, noun in row] for row in asked])
        longest = int(lengths.max())
        ids = torch.full((count, 3, longest), model.prompter.pad)
        for i, row in enumerate(asked):
            for j, (question, _) in enumerate(row):
                ids[i, j, : len(question)] = torch.tensor(question)
        prefix = table(torch.tensor(self.prefix))[None].expand(count, -1, -1)
        queries = model.queries(HORIZON)[steps][None, None].expand(count, 3, -1, -1)
        one = torch.cat(
            [table(ids), state[:, None].expand(-1, 3, -1, -1).to(prefix.dtype), queries.to(prefix.dtype)], dim=2
        )
        part = one.shape[2]
        x = torch.cat(
            [prefix[:, :1], patches.to(prefix.dtype), prefix[:, 1:], one.reshape(count, 3 * part, width)], dim=1
        )
        shared = spots + len(self.prefix)
        real = torch.cat([torch.arange(longest) < lengths[..., None], torch.ones(count, 3, 3, dtype=torch.bool)], dim=2)
        # Each question goes on where the prefix ends, as if it were alone.
        own = torch.cat(
            [
                shared + torch.arange(longest).expand(count, 3, -1),
                shared + lengths[..., None],
                shared + lengths[..., None] + 1 + steps,
            ],
            dim=2,
        )
        positions = torch.cat([torch.arange(shared).expand(count, -1), own.reshape(count, -1)], dim=1)
        block = torch.cat([torch.zeros(shared, dtype=torch.long), 1 + torch.arange(3).repeat_interleave(part)])
        place = torch.arange(len(block))
        allowed = (place <= place[:, None]) & ((block == 0) | (block == block[:, None]))
        valid = torch.cat([torch.ones(count, shared, dtype=torch.bool), real.reshape(count, -1)], dim=1)
        mask = allowed & valid[:, None, None]
        hidden = model.body.language_model(x, mask, positions)[:, shared:].reshape(count, 3, part, width)
        at_noun = hidden.gather(2, nouns[..., None, None].expand(-1, -1, 1, width))[:, :, 0]
        rows_noun = shared + torch.arange(3)[:, None] * part + nouns[..., None]
        rows_query = (shared + torch.arange(3)[:, None] * part + torch.arange(longest + 1, part)).expand(count, -1, -1)
        with torch.autocast("cpu", enabled=False):
            loss = self.where(hidden[:, :, longest + 1 :].float(), at_noun.float(), batch)
            loss = loss + self.alignment(patches.float(), batch)
            for layer in NOUN_LAYERS:
                loss = loss + 0.3 * self.guidance(layer, rows_noun, positions, shared, batch)
            last = model.body_spec.text.layers - 1
            return loss + 0.3 * self.guidance(last, rows_query, positions, shared, batch)

    def where(self, queries: Tensor, nouns: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Error of the place: everything from the queries, the place in the image from the noun as well."""
        target, visible = batch["place"], batch["visible"]
        by_query = F.smooth_l1_loss(
            self.place(queries), target[:, :, None].expand(-1, -1, 2, -1), beta=0.1, reduction="none"
        )
        by_noun = F.smooth_l1_loss(self.place(nouns)[..., :2], target[..., :2], beta=0.1, reduction="none")
        return (by_query.mean((2, 3)) * visible).mean() + (by_noun.mean(2) * visible).mean()

    def alignment(self, patches: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """A patch that shows a red cube must resemble the words red and cube: dense supervision of the vision part."""
        table = self.model.body.language_model.model.embed_tokens.weight
        scale = 2.0 / math.sqrt(patches.shape[2])
        loss = torch.zeros(())
        for ids, labels in ((self.colour_ids, batch["patch_colours"]), (self.shape_ids, batch["patch_shapes"])):
            logits = patches @ torch.cat([self.background, table[ids]]).T * scale
            weight = torch.ones(len(ids) + 1)
            weight[0] = 0.1  # most patches show the table
            loss = loss + F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight)
        return loss

    def guidance(self, layer: int, rows: Tensor, positions: Tensor, shared: int, batch: dict[str, Tensor]) -> Tensor:
        """-log of the attention that `rows` `[b, 3, k]` give, in one head, to the patches of their object."""
        attention = self.model.body.language_model.model.layers[layer].self_attn
        y = self.seen[layer].float()
        count, flat = len(y), rows.flatten(1)
        cos, sin = rotary(positions, attention.head_width, self.model.body_spec.text.rope_theta)
        chosen = y.gather(1, flat[..., None].expand(-1, -1, y.shape[2]))
        q = attention.split(attention.q_proj(chosen), attention.heads)[:, HEAD]
        k = attention.split(attention.k_proj(y[:, :shared]), attention.heads)[:, HEAD]
        turn = flat[..., None].expand(-1, -1, attention.head_width)
        q = rotate(q, cos[:, 0].gather(1, turn), sin[:, 0].gather(1, turn))
        k = rotate(k, cos[:, 0, :shared], sin[:, 0, :shared])
        spots = batch["patch_objects"].shape[1]
        weight = (q @ k.transpose(1, 2) * attention.head_width**-0.5).log_softmax(-1)[..., 1 : 1 + spots]
        weight = weight.reshape(count, 3, -1, spots)
        target = (batch["patch_objects"][:, None] == torch.arange(1, 4)[:, None])[:, :, None]
        mass = -torch.logsumexp(weight.masked_fill(~target, -30.0), dim=-1)
        return (mass * target.any(-1)).mean()


class Pictures:
    """The grounding images as batches."""

    def __init__(self, file: Path, patch: int, normalizer: Normalizer) -> None:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {k: stored[k] for k in stored.files}
        self.images = arrays["images"]
        self.count = len(self.images)
        state = torch.from_numpy(normalizer.encode_state(arrays["states"]))
        colours, shapes = torch.from_numpy(arrays["colours"]), torch.from_numpy(arrays["shapes"])
        pixels = 2 * torch.from_numpy(arrays["pixels"]) - 1
        metres = (torch.from_numpy(arrays["positions"]) - torch.tensor(MIDDLE)) / torch.tensor(SPREAD)
        grid = self.images.shape[1] // patch
        parts = torch.from_numpy(arrays["segments"]).reshape(-1, grid, patch, grid, patch).permute(0, 1, 3, 2, 4)
        parts = parts.reshape(self.count, grid * grid, patch * patch)
        most, which = torch.stack([(parts == k).sum(-1) for k in (1, 2, 3)], -1).max(-1)
        shows = most >= 0.18 * patch * patch
        unclear = (most > 0) & ~shows
        self.table: dict[str, Tensor] = {
            "state": state,
            "colours": colours,
            "shapes": shapes,
            "place": torch.cat([pixels, metres], -1).float(),
            "visible": (torch.from_numpy(arrays["visible"]) > 8).float(),
            "patch_objects": torch.where(shows, which + 1, 0),
            "patch_colours": torch.where(shows, 1 + colours.gather(1, which), 0).masked_fill(unclear, -100),
            "patch_shapes": torch.where(shows, 1 + shapes.gather(1, which), 0).masked_fill(unclear, -100),
        }

    def batch(self, index: NDArray[np.intp], *, augmented: bool) -> dict[str, Tensor]:
        chosen = {k: v[torch.from_numpy(index)] for k, v in self.table.items()}
        chosen["pixels"] = normalised(self.images[index], augmented=augmented)
        if augmented:
            chosen["state"] = chosen["state"] + 0.02 * torch.randn_like(chosen["state"])
        return chosen


def normalised(images: NDArray[np.uint8], *, augmented: bool) -> Tensor:
    """Pixels of both towers; brightness and colour drawn per image."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if augmented:
        gain, shift = 0.8 + 0.4 * torch.rand(len(x), 1, 1, 1), 0.1 * (torch.rand(len(x), 3, 1, 1) - 0.5)
        x = (x * gain + shift).clamp(0, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (DINOV2_MEAN, DINOV2_STD))
    return torch.cat([(x - mean) / std, 2 * x - 1], dim=1)

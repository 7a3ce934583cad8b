"""The images of a set, where they are stored: one by one for random access, or all in order.

A set is a recording itself, or points to one whose images stay where they are; either way the format's own reader
decodes them. Knows nothing of samples.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import DatasetError
from athena_vla.recordings.episode import Frames, Image, Recording

OPEN_EPISODES = 16  # episodes kept open; each may hold the encoded images of one
DECODED = 64  # images kept: samples of one step that share a frame decode it once


class PictureStore:
    """Images by episode and step; `cameras[k]` maps the robot's camera to the recorded one in episode k."""

    def __init__(
        self,
        recording: Recording,
        ids: Sequence[str],
        cameras: Sequence[Mapping[str, str]],
        steps: Sequence[Sequence[int] | NDArray[np.int64] | None],
    ) -> None:
        """`steps[k]`: the recorded frame of each step of episode k; None where step and frame are the same."""
        self.recording, self.ids, self.cameras, self.steps = recording, ids, cameras, steps
        self._open: OrderedDict[int, Mapping[str, Frames]] = OrderedDict()
        self._decoded: OrderedDict[tuple[str, int, int], Image] = OrderedDict()
        self.decodes = 0  # images decoded so far, for tests and curiosity

    def image(self, camera: str, episode: int, step: int) -> Image:
        """Raises `RecordingError` where the image is damaged or gone."""
        steps = self.steps[episode]
        place = step if steps is None else int(steps[step])
        key = (camera, episode, place)
        if key in self._decoded:
            self._decoded.move_to_end(key)
            return self._decoded[key]
        image = self._stream(camera, episode)[place]
        self.decodes += 1
        self._decoded[key] = image
        if len(self._decoded) > DECODED:
            self._decoded.popitem(last=False)
        return image

    def in_order(self, camera: str, lengths: Sequence[int]) -> Iterator[Image]:
        """All images of one camera, episode after episode; a video is decoded forward, once."""
        for episode, length in enumerate(lengths):
            for step in range(length):
                yield self.image(camera, episode, step)

    def _stream(self, camera: str, episode: int) -> Frames:
        if episode not in self._open:
            self._open[episode] = self.recording.read(self.ids[episode]).cameras
            if len(self._open) > OPEN_EPISODES:
                self._open.popitem(last=False)
        self._open.move_to_end(episode)
        name = self.cameras[episode].get(camera, camera)
        streams = self._open[episode]
        if name not in streams:
            raise DatasetError(
                f"Episode {self.ids[episode]} of '{self.recording.path}' has no camera '{name}' any more; it has "
                f"{sorted(streams) or 'none'}. Build the set again."
            )
        return streams[name]

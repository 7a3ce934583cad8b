"""The simulator as a robot: observe, command, and a clock of its own; what closed-loop evaluation drives.

Knows nothing of policies. Time is simulated: it advances by one command period per command and by nothing else.
"""

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import InvalidObservation, SimulationError
from athena_vla.sim.render import make_renderer
from athena_vla.sim.scene import Scene
from athena_vla.sim.success import Judge, measure
from athena_vla.sim.world import THIRD_PERSON, World

TIME_LIMIT = 6.0  # [s], what an episode is given to succeed
_JUDGE_EVERY = 10  # commands between two looks at the success test


class SimRobot:
    """One simulated athena in one scene; `reset` puts it into another."""

    def __init__(
        self,
        scene: Scene,
        embodiment: Embodiment | None = None,
        renderer: str = "auto",
        image_size: tuple[int, int] = (96, 96),  # height, width [px]
    ) -> None:
        if min(image_size) < 8:
            raise SimulationError(
                f"A camera image of {image_size[0]} x {image_size[1]} px is too small: 8 px at least."
            )
        self.world = World(embodiment)
        self.embodiment = self.world.embodiment
        self.renderer = make_renderer(renderer, self.world.model)
        self.image_size = image_size
        self.reset(scene)

    def reset(self, scene: Scene) -> None:
        """Stand in the start pose of `scene`, at time zero."""
        self.scene = scene
        self.world.reset(scene)
        self.judge = Judge(scene.goal)
        self._commands = 0

    @property
    def time(self) -> float:
        """Simulated time since the reset. [s]"""
        return self._commands / self.embodiment.command_hz

    def observe(self) -> Observation:
        """Head camera image, joint positions and the instruction, now."""
        return Observation(
            images={"head": self.render("head", *self.image_size)},
            state=self.world.state,
            instruction=self.scene.instruction,
            time=self.time,
        )

    def command(self, q: NDArray[np.floating]) -> None:
        """Send a command [C], joint targets [rad] and channels, and let one command period pass.

        Raises `InvalidObservation`.
        """
        target, columns = np.asarray(q, dtype=np.float64), self.embodiment.command_columns
        if target.shape != (len(columns),) or not np.isfinite(target).all():
            what = columns.wrong_width(target.shape) if self.embodiment.commanded_channels else ""
            raise InvalidObservation(
                f"{self.embodiment.name} takes {len(columns)} finite joint positions per command, "
                f"it was given shape {list(target.shape)}.{' For channels too: ' + what if what else ''}"
            )
        self.world.step(target)
        self._commands += 1
        if self._commands % _JUDGE_EVERY == 0:
            self.judge.watch(measure(self.world), self.time, _JUDGE_EVERY / self.embodiment.command_hz)

    def success(self) -> bool:
        """Whether the scene's goal was reached and held since the reset."""
        return self.judge.success

    def is_over(self) -> bool:
        """Whether the outcome can no longer change: reached, out of reach, or out of time."""
        return self.judge.success or bool(self.judge.failure) or self.time >= TIME_LIMIT

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """RGB image of any camera ("head", "third_person"), [height, width, 3]."""
        if camera not in ("head", THIRD_PERSON):
            raise SimulationError(f"There is no camera '{camera}'. Known: head, {THIRD_PERSON}.")
        return self.renderer.render(self.world.data, camera, height, width, self.scene.appearance)

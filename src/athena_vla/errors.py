"""Every error a user can meet: one base class, so that the command line prints a sentence and not a traceback.

A message says what is wrong with which object, what exists instead, and what to do.
"""

import difflib
from collections.abc import Iterable

from athena_vla.extras import install


class AthenaError(Exception):
    """Base of all errors about the user's world; our own broken invariants stay `AssertionError`.

    `code` is what programs decide by; the sentence is for people and may change.
    """

    code = "error"
    of_writing = False  # the operating system refused what was to be written; no fault of what was read


MOST_NAMES = 40  # that a message lists: episodes may be thousands


class UnknownName(AthenaError):
    """A name that is not among the known ones; the message lists the alternatives."""

    code = "name.unknown"

    def __init__(self, kind: str, name: object, known: Iterable[object]) -> None:
        names = [str(k) for k in known]
        # Somebody who stopped typing is nearer than somebody who mistyped another name.
        begun = [k for k in names if len(str(name)) > 2 and k.startswith(str(name))]
        close = begun[:1] or difflib.get_close_matches(str(name), names, n=1)
        guess = f" Did you mean '{close[0]}'?" if close else ""
        listed = ", ".join(names[:MOST_NAMES]) or "none"
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        super().__init__(f"There is no {kind} '{name}'.{guess} Known: {listed}{more}.")


class InvalidEmbodiment(AthenaError):
    """A robot description that contradicts itself."""

    code = "robot.invalid"

    def __init__(self, robot: str, problem: str) -> None:
        super().__init__(f"Robot '{robot}': {problem}")


class RobotFileError(AthenaError):
    """A robot description that cannot be read, or does not say what a robot needs."""

    code = "robot.file"


class InvalidObservation(AthenaError):
    """An observation that does not fit the robot or the model."""

    code = "observation.invalid"


class RecordingError(AthenaError):
    """A recording that cannot be read, or not in the way that was asked for."""

    code = "episode.unreadable"


class LfsPointer(RecordingError):
    """A file that holds a git-LFS pointer in place of the data."""

    code = "file.lfs_pointer"

    def __init__(self, path: object) -> None:
        super().__init__(f"'{path}' is a git-LFS pointer, not the data. Fetch it with: git lfs pull")


class DatasetError(AthenaError):
    """A dataset that cannot be built, opened or used for this robot."""

    code = "dataset.unusable"


class NotFinite(DatasetError):
    """Recorded numbers that are no numbers."""

    code = "number.not_finite"


class JointMismatch(DatasetError):
    """Recorded columns that cannot be matched to the joints of a robot."""

    code = "joint.mismatch"


class ModelError(AthenaError):
    """A checkpoint or model specification that cannot be used."""

    code = "model.unusable"


class BlindPolicy(ModelError):
    """A policy whose actions do not depend on something they must depend on."""

    code = "policy.blind"


class BundleError(AthenaError):
    """A bundle that is incomplete, edited, or does not fit what is asked of it."""

    code = "bundle.unusable"


class TrainingError(AthenaError):
    """A training run that cannot start or had to stop."""

    code = "training.stopped"


class ExportError(AthenaError):
    """A graph or engine that cannot be written or run."""

    code = "export.failed"


class DeviceError(AthenaError):
    """A device that was asked for by name and cannot be taken, with the reason."""


class SafetyError(AthenaError):
    """A safety filter that cannot be constructed, or a command vector of the wrong shape."""

    code = "safety.invalid"


class ServerError(AthenaError):
    """A policy server that cannot start, or an answer from one that cannot be used."""

    code = "server.failed"


class EvaluationError(AthenaError):
    """An evaluation, comparison or report that cannot be made from what was given."""

    code = "evaluation.impossible"


class ViewError(AthenaError):
    """Something recorded or predicted that cannot be shown as it was asked for."""

    code = "view.impossible"


class WireError(ServerError):
    """A message that is not what the protocol says; names what was found."""

    code = "message.invalid"


class Superseded(ServerError):
    """A question whose client sent a newer one before the policy began with it."""


class Busy(ServerError):
    """A server that cannot take another question just now; ask again."""

    code = "server.busy"


class SimulationError(AthenaError):
    """A simulated world that cannot be built or rendered."""

    code = "simulation.failed"


class HubError(AthenaError):
    """Something that cannot be published on the Hub, or fetched from it."""

    code = "hub.failed"


class MissingDependency(AthenaError):
    """An optional package that is not installed; names the extra that brings it."""

    code = "package.missing"

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"'{package}' is not installed; it is needed {purpose}. Install it with: {install(extra)}")

"""Old module names, kept until 0.3.0: each import of one gives the new module and a deprecation warning."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

ROOT = "athena_vla"
UNTIL = "0.3.0"
MOVED: dict[str, str] = {
    "backends": "engines.backends",
    "bench.stage": "bench.benchmarking",
    "control.bag": "ros2.bag",
    "control.client": "wire.client",
    "control.clockwork": "control.clock",
    "control.connection": "wire.connection",
    "control.constrain": "control.reachable",
    "control.desk": "wire.queue",
    "control.dialects": "wire.protocols",
    "control.http": "wire.http",
    "control.ladder": "control.fallback",
    "control.metrics": "wire.metrics",
    "control.prefix": "control.action_prefix",
    "control.ros2": "ros2.messages",
    "control.ros2_node": "ros2.node",
    "control.serve": "wire.server",
    "control.service": "wire.service",
    "control.wire": "wire.codec",
    "data.align": "check.lags",
    "data.alignment": "recordings.alignment",
    "data.annotate": "annotate.annotating",
    "data.annotations": "recordings.annotations",
    "data.augment": "dataset.augment",
    "data.build": "dataset.build",
    "data.build_config": "dataset.build_config",
    "data.card": "dataset.card",
    "data.check": "check",
    "data.check.cameras": "check.cameras",
    "data.check.clocks": "check.clocks",
    "data.check.findings": "check.findings",
    "data.check.joints": "check.joints",
    "data.check.language": "check.language",
    "data.check.page": "check.page",
    "data.check.relations": "check.action_state",
    "data.check.run": "check.checking",
    "data.check.splits": "check.splits",
    "data.convert": "recordings.convert",
    "data.dataset": "dataset.dataset",
    "data.episode": "recordings.episode",
    "data.fixes": "recordings.fixes",
    "data.formats": "recordings.formats",
    "data.formats.arrow": "recordings.formats.arrow",
    "data.formats.common": "recordings.formats.common",
    "data.formats.hdf5": "recordings.formats.hdf5",
    "data.formats.isaac_folder": "recordings.formats.isaac_folder",
    "data.formats.isaaclab_hdf5": "recordings.formats.isaaclab_hdf5",
    "data.formats.lerobot": "recordings.formats.lerobot",
    "data.formats.lerobot_meta": "recordings.formats.lerobot_meta",
    "data.formats.lerobot_names": "recordings.formats.lerobot_names",
    "data.formats.lerobot_rows": "recordings.formats.lerobot_rows",
    "data.formats.lerobot_schema": "recordings.formats.lerobot_schema",
    "data.formats.lerobot_v2_write": "recordings.formats.lerobot_v2_write",
    "data.formats.lerobot_write": "recordings.formats.lerobot_write",
    "data.formats.luma": "recordings.media.luma",
    "data.formats.mobilitygen": "recordings.formats.mobilitygen",
    "data.formats.motion_npz": "recordings.formats.motion_npz",
    "data.formats.replicator": "recordings.formats.replicator",
    "data.formats.rlds": "recordings.formats.rlds",
    "data.formats.rlds_write": "recordings.formats.rlds_write",
    "data.formats.robomimic_hdf5": "recordings.formats.robomimic_hdf5",
    "data.formats.statistics": "recordings.formats.lerobot_statistics",
    "data.formats.tfrecord": "recordings.formats.tfrecord",
    "data.formats.video": "recordings.media.video",
    "data.formats.xr_teleoperate": "recordings.formats.xr_teleoperate",
    "data.info": "recordings.info",
    "data.limbs": "recordings.limbs",
    "data.motion": "annotate.motion",
    "data.normalize": "dataset.normalize",
    "data.paraphrase": "annotate.paraphrase",
    "data.phrases": "annotate.phrases",
    "data.pictures": "dataset.image_store",
    "data.png": "recordings.media.png",
    "data.prepare": "dataset.prepare",
    "data.segments": "annotate.segments",
    "data.sidecar": "dataset.sidecar",
    "data.signals": "annotate.signals",
    "data.spans": "recordings.intervals",
    "data.windows": "dataset.windows",
    "data.workers": "jobs",
    "demo.config": "demo.demo_config",
    "demo.pictures": "demo.report_images",
    "demo.serving": "demo.served_run",
    "evaluate.episode": "evaluate.rollout",
    "export.deployment": "engines.deployment_config",
    "evaluate.pool": "jobs",
    "export.device": "export.target_device",
    "export.gates": "export.serving_gates",
    "export.stage": "export.exporting",
    "export.trace": "export.graph_trace",
    "finetune.config": "finetune.finetune_config",
    "finetune.stage": "finetune.finetuning",
    "models.attention": "models.body.attention",
    "models.checkpoint": "models.released.released_weights",
    "models.four_bit": "models.weights.nf4",
    "models.gates": "models.input_gates",
    "models.images": "models.body.images",
    "models.llama": "models.body.llama",
    "models.oft_files": "models.released.oft_files",
    "models.packed": "models.weights.packed",
    "models.packed_linear": "models.weights.packed_linear",
    "models.pretrained": "models.released.pretrained",
    "models.prismatic": "models.body.prismatic",
    "models.prompt": "models.body.prompt",
    "models.release": "models.released.release",
    "models.row_kernel": "models.weights.gemv_kernel",
    "models.statistics": "models.released.dataset_statistics",
    "models.store": "models.weights.store",
    "models.tiny_tokenizer": "models.body.tiny_tokenizer",
    "models.vit": "models.body.vit",
    "plan.stage": "plan.planning",
    "quantize.config": "quantize.quantize_config",
    "quantize.stage": "quantize.quantizing",
    "report.build": "report.assemble",
    "report.deployment": "report.deploying_evidence",
    "report.media": "report.embedded_media",
    "report.safety": "report.evidence",
    "serving": "serve",
    "sim.deployment": "sim.deployed_episodes",
    "sim.language": "sim.task_language",
    "sim.workers": "jobs",
    "streaming": "offload",
    "tensorrt_engine": "engines.tensorrt_engine",
}
GONE = ("data",)  # folders that are gone; the other old parents stand or have moved themselves


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name. Asked first: a parent that moved would find its files a second time."""

    def __init__(self) -> None:
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        name = fullname.removeprefix(f"{ROOT}.")
        if name == fullname or not (name in MOVED or name in GONE):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=name in GONE)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        name = spec.name.removeprefix(f"{ROOT}.")
        if name in GONE:
            return None  # an empty package, through which its old modules are found
        new = f"{ROOT}.{MOVED[name]}"
        warnings.warn(
            f"{spec.name} is now {new}; the old name goes with version {UNTIL}.", DeprecationWarning, stacklevel=2
        )
        module = importlib.import_module(new)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the module was executed under its new name, which its spec keeps."""
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name, module.__spec__)


def install() -> None:
    """Let `import` find old names; safe to call twice."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

"""Which extra of pyproject.toml brings a package: for messages about missing ones."""

EXTRA_OF = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "mujoco": "sim",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "bitsandbytes": "gpu",
    "openvino": "openvino",
    "ray": "ray",
    "mcap": "ros2",
    "mcap_ros2": "ros2",
    "ruckig": "serve",
    "wandb": "wandb",
}

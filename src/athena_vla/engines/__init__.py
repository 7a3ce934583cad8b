"""Engines execute the graphs of a model: PyTorch, ONNX Runtime, OpenVINO, TensorRT."""

# Serves an exported bundle on a Jetson with JetPack 6.2 (Python 3.10), by ONNX Runtime on the processor. Never built by us.
#   build, in the clone:  docker build -f docker/jetpack-6.2.Dockerfile -t athena-serve .
#   run:  docker run --rm --network host -v $PWD/policy:/policy:ro -e ATHENA_TOKEN athena-serve
# TensorRT's Python packages of JetPack are bound to the system's Python: engines are built and run outside of a container,
# as docs/orin.md says. ONNX Runtime ends at 1.23.2 for Python 3.10 on PyPI; builds for the GPU come from NVIDIA's own index.
FROM ubuntu:22.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --prefer-binary -c /src/constraints-py310.txt '/src[runtime,serve]'
RUN useradd --create-home athena
USER athena
ENV OMP_NUM_THREADS=6
ENTRYPOINT ["/venv/bin/athena"]
CMD ["serve", "/policy", "--backend", "onnxruntime", "--threads", "6", "--host", "127.0.0.1", "--port", "8000"]

# Serves an exported bundle on a Jetson with JetPack 7.2 (Python 3.12), by ONNX Runtime on the processor. Never built by us.
#   build, in the clone:  docker build -f docker/jetpack-7.2.Dockerfile -t athena-serve .
#   run:  docker run --rm --network host -v $PWD/policy:/policy:ro -e ATHENA_TOKEN athena-serve
# With the GPU: `pip install onnxruntime-gpu` in place of onnxruntime, `--runtime nvidia`, and `--providers cuda`.
FROM ubuntu:24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --prefer-binary -c /src/constraints.txt '/src[runtime,serve]'
RUN useradd --create-home athena
USER athena
ENV OMP_NUM_THREADS=8
ENTRYPOINT ["/venv/bin/athena"]
CMD ["serve", "/policy", "--backend", "onnxruntime", "--threads", "8", "--host", "127.0.0.1", "--port", "8000"]

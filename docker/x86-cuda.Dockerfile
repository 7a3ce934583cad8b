# Trains and serves on an x86-64 machine with an NVIDIA card (driver 580 or newer). Never built by us.
#   build, in the clone:  docker build -f docker/x86-cuda.Dockerfile -t athena .
#   run:  docker run --rm --gpus all --shm-size 8g -v $PWD:/work -w /work athena train --preset rtx4090 --data dataset --out policy
# torch brings CUDA's libraries with it; the container needs the driver alone (NVIDIA's container toolkit).
FROM ubuntu:24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv gcc python3-dev && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --prefer-binary -c /src/constraints.txt '/src[train,sim,export,serve,gpu]'
ENTRYPOINT ["/venv/bin/athena"]
CMD ["doctor"]

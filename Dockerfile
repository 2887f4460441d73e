# docker build -t routerd:0.1.0 .
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends clang llvm libbpf-dev linux-libc-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/runtime.txt requirements/runtime.txt
RUN python -m venv /opt/routerd \
    && /opt/routerd/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt
COPY . .
RUN pip wheel --no-cache-dir --no-deps -w /wheels . \
    && /opt/routerd/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends iproute2 libbpf1 nftables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/routerd /opt/routerd
ENV PATH=/opt/routerd/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The operator needs no more; agent and speaker are given root, less nearly all of its capabilities, by their manifest.
USER 65532:65532
ENTRYPOINT ["routerd"]

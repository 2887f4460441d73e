# `make image`, or: docker build -t routerd:0.1.0 .   (buildah and podman take it as it is)
# Layers: base, Debian's packages, Python's packages, routerd. A change of the code makes and sends the last, 4 MB.

# pip installs into the environment from outside: nothing in the image needs it there. Byte code is made at once, as the
# containers' root file system is read-only, and knows no times, so that two builds make the same. Not of the API's
# classes in `kubernetes`, which nothing imports: 45 MB.
FROM python:3.11-slim-bookworm AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
# LOCK=aws.txt, alibaba.txt or azure.txt: with that cloud's SDK, for an operator with `cloud.provider`.
ARG LOCK=runtime.txt
COPY requirements/runtime.txt requirements/aws.txt requirements/alibaba.txt requirements/azure.txt ./
RUN python -m venv --without-pip /opt/routerd \
    && pip --python /opt/routerd/bin/python install --no-compile --require-hashes -r $LOCK \
    && python -m compileall -q --invalidation-mode unchecked-hash -x 'kubernetes/(aio/)?client/(api|models)/' /opt/routerd

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends clang llvm libbpf-dev linux-libc-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
# The build backend at the version of the lock, in place of whatever is newest.
COPY requirements/dev.txt ./
RUN sed -n '/^setuptools==/,/[^\\]$/p' dev.txt >backend.txt \
    && pip install --require-hashes -r backend.txt \
    && python -m venv --without-pip /opt/routerd
COPY pyproject.toml setup.py README.md LICENSE ./
COPY tools/compile_c.py tools/
COPY bpf bpf
COPY cloud cloud
COPY cni cni
COPY bfd bfd
COPY ipam ipam
COPY upstream upstream
COPY egress egress
COPY eni eni
COPY fib fib
COPY netlink netlink
COPY bgp bgp
COPY routerd routerd
RUN SOURCE_DATE_EPOCH=0 pip wheel --no-deps --no-build-isolation -w /wheels . \
    && pip --python /opt/routerd/bin/python install --no-compile --no-deps /wheels/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/routerd

FROM python:3.11-slim-bookworm
# The base image has no byte code of the standard library: 13 MB, and half the time that agent and speaker take to start.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends iproute2 iptables libbpf1 nftables \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/apt /var/log/*.log \
    && python -m compileall -q --invalidation-mode unchecked-hash \
        -x 'site-packages|/(ensurepip|idlelib|lib2to3|test|tkinter|turtledemo)/' /usr/local/lib/python3.11
COPY --from=packages /opt/routerd /opt/routerd
COPY --from=build /opt/routerd /opt/routerd
ENV PATH=/opt/routerd/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The operator needs no more; agent and speaker are given root, less nearly all of its capabilities, by their manifest.
USER 65532:65532
ENTRYPOINT ["routerd"]
ARG REVISION=""
LABEL org.opencontainers.image.title="routerd" \
    org.opencontainers.image.description="BGP and egress gateway daemon of Kubernetes nodes" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)" \
    org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"

# An image of one bundle, installed without network from what `bash scripts/bundle_offline.sh pack BUNDLE offline` made.
# Pack with the base's own Python (Ubuntu 24.04: 3.12). It holds no data; a model in the package goes along.
#   CPU:  docker build --build-arg BUNDLE=ircl_mvi .
#   CUDA: docker build --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg BUNDLE=ircl_mvi .   (run with --gpus all)
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG BUNDLE=ircl_mvi
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# the base, chosen by its version, says which Python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# mounted, not copied: the wheels are no layer of the image
RUN --mount=type=bind,source=offline,target=/mnt/offline \
    bash /mnt/offline/bundle_offline.sh install /mnt/offline /opt/app \
    && test -f "/opt/app/${BUNDLE}/configs/inference.json" \
    && ln -s "/opt/app/${BUNDLE}" /opt/bundle \
    && useradd --no-create-home --uid 10001 app
ENV MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS="ignore:parsing config_file"
USER 10001
WORKDIR /opt/bundle
ENTRYPOINT ["/opt/app/.venv/bin/python", "-m", "monai.bundle", "run"]
CMD ["--config_file", "configs/inference.json", "--dataset_dir", "/data", "--output_dir", "/results", "--cache_dir", "/tmp/cache"]

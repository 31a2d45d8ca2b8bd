# For TPUs, on GKE through launch/xpk.sh:  docker build --file launch/container/tpu.Dockerfile --tag IMAGE .
FROM python:3.12-slim

WORKDIR /opt/zipper
COPY requirements.lock ./
# espeak-ng is GPL-3.0 and only speaks the demonstration corpus: not in the image.
RUN awk '/^[^ ]/ { keep = !/^espeakng-loader==/ } keep' requirements.lock > locked.txt \
 && pip install --no-cache-dir --require-hashes -r locked.txt
COPY . .
# All versions are there already; the extra adds libtpu, whose version JAX names.
RUN pip install --no-cache-dir --no-build-isolation ".[tpu]"

# --build-arg RUN_AS=root where a node lets only root open its TPUs.
ARG RUN_AS=zipper
RUN useradd --create-home --uid 1000 zipper
USER ${RUN_AS}
WORKDIR /home/zipper
ENTRYPOINT ["zipper"]

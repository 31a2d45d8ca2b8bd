# For NVIDIA GPUs:  docker build --file launch/container/gpu.Dockerfile --tag IMAGE .
# CUDA comes with the wheels; the host needs its driver only.
FROM python:3.12-slim

WORKDIR /opt/zipper
COPY requirements.lock ./
# espeak-ng is GPL-3.0 and only speaks the demonstration corpus: not in the image.
RUN awk '/^[^ ]/ { keep = !/^espeakng-loader==/ } keep' requirements.lock > locked.txt \
 && pip install --no-cache-dir --require-hashes -r locked.txt \
 && pip install --no-cache-dir "jax[cuda12]==$(python -c 'from importlib.metadata import version; print(version("jax"))')"
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home --uid 1000 zipper
USER zipper
WORKDIR /home/zipper
ENTRYPOINT ["zipper"]

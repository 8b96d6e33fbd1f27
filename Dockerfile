# leanonnx in a container.
#
#   docker build -t leanonnx .
#   docker run --rm -v "$PWD:/work" leanonnx compress in.onnx out.onnx --keep 0.25
#
# With an NVIDIA GPU (the driver and the container toolkit must be on the host):
#
#   docker build -t leanonnx:cuda --build-arg EXTRAS=cuda,images,sweep .
#   docker run --rm --gpus all -v "$PWD:/work" leanonnx:cuda bench in.onnx out.onnx --provider cuda
FROM python:3.12-slim AS build
ARG EXTRAS=images
COPY pyproject.toml README.md LICENSE /source/
COPY leanonnx /source/leanonnx
RUN python -m venv /opt/leanonnx && /opt/leanonnx/bin/pip install --no-cache-dir "/source[${EXTRAS}]"

FROM python:3.12-slim
COPY --from=build /opt/leanonnx /opt/leanonnx
ENV PATH=/opt/leanonnx/bin:$PATH
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["leanonnx"]
CMD ["--help"]

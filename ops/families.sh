#!/bin/sh
# Environments for the examples of other model families, below .families/ (git-ignored): Keras from PyPI, PyTorch from Debian.
# Does nothing where they are there. Usage: ops/families.sh
set -eu
cd "$(dirname "$0")/.."
uv=$PWD/.venv/uv/bin/uv

if ! .families/keras/bin/python -c 'import keras, tf2onnx' 2>/dev/null; then
  "$uv" venv -q --clear --python .venv/bin/python .families/keras
  VIRTUAL_ENV=$PWD/.families/keras "$uv" pip sync -q --require-hashes requirements-keras.lock
fi
if ! .families/torch/bin/python -c 'import torch, onnx, pyarrow' 2>/dev/null; then
  sh ops/install_debian.sh python3-torch
  "$uv" venv -q --clear --system-site-packages --python /usr/bin/python3.11 .families/torch
  VIRTUAL_ENV=$PWD/.families/torch "$uv" pip sync -q --require-hashes requirements-torch.lock
fi
.families/keras/bin/python -c 'import keras, tensorflow; print("keras", keras.__version__, "tensorflow", tensorflow.__version__)'
.families/torch/bin/python -c 'import torch; print("torch", torch.__version__)'

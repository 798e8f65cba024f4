#!/usr/bin/env python3
"""Convert Keras's ImageNet ResNet50, in TensorFlow.js form, into a state dict with torchvision's names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.keras_resnet50 import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)

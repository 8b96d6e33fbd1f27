"""Train a small U-Net on circles and squares, on one CPU thread, and export it as ONNX.

    pip install torch==2.13.0 onnx onnxscript onnxruntime numpy
    python -m models.train_unet --out models/cs_unet.onnx

The data are those of the LEAN paper (``circles_squares.py``): 500 images to train, 100 to validate, 50 to test. The
network is the U-Net of Ronneberger et al. 2015 (arXiv 1505.04597) with batch normalisation, padded convolutions and
three halvings; the optimiser is Adam with the one-cycle schedule of Smith & Topin 2017 (arXiv 1708.07120).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor, nn

from models.circles_squares import CLASSES, SIZE, TEST_SEED, TRAIN_SEED, VALIDATION_SEED, Batch, images

LEVELS = 4
BATCH = 2
OPSET = 18


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Twice 3x3 convolution, batch normalisation, ReLU: ``[B, inputs, H, W]`` to ``[B, outputs, H, W]``."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Four levels of ``width``, 2, 4 and 8 times ``width`` channels; ``[B, 1, H, W]`` to logits ``[B, 5, H, W]``."""

    def __init__(self, width: int) -> None:
        """Random weights, from torch's global generator."""
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.up = nn.ModuleList(double_conv(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes at each pixel."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([skips.pop(), grow(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def turned(batch: Tensor, symmetry: int) -> Tensor:
    """One of the eight symmetries of the square, on the last two axes: the task does not change under them."""
    turned_batch = torch.rot90(batch, symmetry % 4, (-2, -1))
    return turned_batch.flip(-1) if symmetry >= 4 else turned_batch


def epoch_batches(data: Batch, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels once, in random order, each batch under a random symmetry."""
    order = torch.randperm(len(data.images), generator=generator).numpy()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        symmetry = int(torch.randint(8, (), generator=generator))
        x, y = torch.from_numpy(data.images[chosen]), torch.from_numpy(data.labels[chosen]).long()
        yield turned(x, symmetry), turned(y, symmetry)


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch) -> float:
    """Share of the pixels whose largest logit is that of their label."""
    model.eval()
    answers = [model(torch.from_numpy(image[None])).argmax(1)[0].numpy() for image in data.images]
    return float((np.stack(answers) == data.labels).mean())


def train(model: nn.Module, data: Batch, validation: Batch, epochs: int, rate: float, seed: int) -> None:
    """Minimise the cross-entropy for a number of epochs; print loss and validation accuracy after each."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(data.images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    begin = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        losses: list[float] = []
        for x, y in epoch_batches(data, generator):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}, "
            f"validation accuracy {accuracy(model, validation):.4f}, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )


def export(model: nn.Module, path: Path, properties: dict[str, str]) -> None:
    """Write the network as one ONNX file with a dynamic batch axis and the given metadata."""
    model.eval()
    example = torch.zeros(2, 1, SIZE, SIZE)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # the exporter's stack traces hold the paths of the machine
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    onnx.helper.set_model_props(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def onnx_accuracy(path: Path, data: Batch) -> float:
    """Pixel accuracy of the written file in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"input": image[None]})[0].argmax(1)[0] for image in data.images]
    return float((np.stack(answers) == data.labels).mean())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small U-Net on circles and squares; export it as ONNX.")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images")
    parser.add_argument("--width", type=int, default=16, help="channels of the first level; doubled at each next")
    parser.add_argument("--rate", type=float, default=5e-3, help="largest learning rate")
    parser.add_argument("--images", type=int, default=500, help="training images")
    parser.add_argument("--out", type=Path, default=Path("cs_unet.onnx"), help="file to write")
    return parser.parse_args()


def main() -> None:
    """Train, export and measure."""
    options = arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    model = UNet(options.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    validation, test = images(100, VALIDATION_SEED), images(50, TEST_SEED)
    train(model, images(options.images, TRAIN_SEED), validation, options.epochs, options.rate, options.seed)
    found = accuracy(model, test)
    how = (
        f"python -m models.train_unet --epochs {options.epochs} --seed {options.seed} --width {options.width} "
        f"--rate {options.rate:g} --images {options.images}, torch {torch.__version__}"
    )
    export(model, options.out, {"name": "cs_unet", "accuracy": f"{found:.4f}", "how made": how})
    print(f"validation accuracy {accuracy(model, validation):.4f}, test accuracy {found:.4f}")
    print(f"{options.out}: test accuracy in onnxruntime {onnx_accuracy(options.out, test):.4f}")


if __name__ == "__main__":
    main()

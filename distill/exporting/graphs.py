"""The two sides of a model as ONNX graphs, of any batch size; and the same with weights of 8 bits.

    text.onnx    ids int64 [text, max_words] -> vector [text, index]; sentence, concepts
    video.onnx   pixels uint8 [video, num_frames, 3, size, size] and real bool [video, num_frames] (False: padding)
                 -> vector [video, index]; frames, and what else a search reads of a video

`vector` is what a gallery is searched by. The other outputs are fields of `distill/model/features.py`: of a second
stage, or the frames of a second look and of moments, and the relevance by which a model pooled them; `pooled` is the
`vector` there of a model that is searched by another one (GLSCL, by its concepts).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.errors import ExpectedError
from distill.model.contract import RetrievalModel
from distill.release.release import Release

OPSET = 20
EXAMPLES = 2  # rows that a graph is traced with: with one, torch takes the number of rows for a constant
LARGEST_BATCH = 2**16
LARGEST = 2**31 - 2**24  # bytes of weights: a graph is one protobuf message, which ends at 2 GiB
TEXT_FIELDS = ("sentence", "concepts")
POOLED = "pooled"  # `VideoFeatures.vector` of a model that is not searched by it
QUANTISED = ["MatMul", "Gemm"]  # convolutions with weights of 8 bits were slower than those of 32


class Side(nn.Module):
    """One side of a model: the tensors that go in by `inputs`, and out by `outputs`."""

    inputs: tuple[str, ...]

    def __init__(self, model: RetrievalModel, fields: tuple[str, ...]):
        super().__init__()
        self.model, self.outputs = model, ("vector", *fields)


class TextSide(Side):
    """Texts to query vectors and fields of `TextFeatures`."""

    inputs = ("ids",)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of token ids [text, word]."""
        text = self.model.encode_text(ids)
        return self.model.query_vectors(text), *(text.tensors()[name] for name in self.outputs[1:])


class VideoSide(Side):
    """Videos to stored vectors and fields of `VideoFeatures`."""

    inputs = ("pixels", "real")

    def forward(self, pixels: Tensor, real: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of pixels [video, frame, 3, row, column]; `real` is False on padded frames."""
        video = self.model.encode_video(pixels, real)
        found = {POOLED: video.vector, **video.tensors()}
        return self.model.index_vectors(video), *(found[name] for name in self.outputs[1:])


@torch.no_grad()
def sides(release: Release) -> dict[str, tuple[Side, tuple[Tensor, ...]]]:
    """Return both sides of a release, each with examples of its inputs."""
    model = release.model
    ids = torch.from_numpy(release.tokenizer(["a dog", "two dogs play"]))
    text = tuple(name for name in TEXT_FIELDS if name in model.encode_text(ids).tensors())
    weighs = () if model.pool_temperature is None else ("relevance",)
    read = tuple(name for name in model.rerank_fields or ("frames",) if name != "real")
    shape = (EXAMPLES, release.num_frames)
    pixels = torch.zeros(*shape, 3, release.size, release.size, dtype=torch.uint8)
    real = torch.ones(shape, dtype=torch.bool)
    real[1, release.num_frames // 2 + 1 :] = False
    video = model.encode_video(pixels, real)
    pooled = () if model.index_vectors(video).shape == video.vector.shape else (POOLED,)
    return {
        "text": (TextSide(model, text).eval(), (ids,)),
        "video": (VideoSide(model, read + weighs + pooled).eval(), (pixels, real)),
    }


def write_graph(side: Side, examples: tuple[Tensor, ...], path: Path) -> None:
    """Write one side as an ONNX graph."""
    size = sum(parameter.nbytes for parameter in side.parameters())
    if size > LARGEST:
        raise ExpectedError(f"{path.name}: {size:,} bytes of weights, but an ONNX graph holds at most {LARGEST:,}")
    with _quiet(), torch.no_grad():
        program = _traced(side, examples, path.name)
        for node in program.model.graph.all_nodes():  # paths of this machine, in stack traces
            node.metadata_props.clear()
        program.save(path, external_data=False)


def _traced(side: Side, examples: tuple[Tensor, ...], name: str) -> torch.onnx.ONNXProgram:
    rows = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        program = torch.onnx.export(
            side,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=side.inputs,
            output_names=side.outputs,
            dynamic_shapes=tuple({0: rows} for _ in examples),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise ExpectedError(
            f"{name}: torch has no ONNX graph for these towers ({type(reason).__name__}: {reason}); use the release "
            f"itself"
        ) from None
    assert program is not None
    return program


def quantise(path: Path, to: Path) -> None:
    """Write a graph again with the weights of its matrix products in 8 bits; what they multiply is rounded as it comes.

    Weights have 7 of the 8 bits: with all of them, processors that lack VNNI add up to more than they can hold.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            to,
            op_types_to_quantize=QUANTISED,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the libraries say of their own steps: none of it is about the model."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)

"""What a network became: its graphs as the exporter holds them, and how they are opened as a site would."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from mammo_export.activation import add_activation, with_spec, without_activation
from mammo_export.tally import Graphs
from mammo_export.to_onnx import decoder_graph_from_network, encoder_graph_from_network, logits_graph_from_network
from mammo_runtime.bundle import Bundle
from mammo_runtime.session import Session, open_session
from mammo_runtime.spec import ModelSpec, Task


@dataclass(frozen=True)
class Files:
    """What a network became: the files of a bundle, and the graph they are proved with."""

    logits: onnx.ModelProto
    """Without the activation; of a prompted model, the decoder's."""
    model: onnx.ModelProto
    """As shipped; of a prompted model, the encoder."""
    decoder: onnx.ModelProto | None = None
    """As shipped; of a prompted model only."""

    @property
    def shipped(self) -> tuple[onnx.ModelProto, ...]:
        """The graphs that a bundle holds."""
        return (self.model,) if self.decoder is None else (self.model, self.decoder)


def files_from_network(network: nn.Module, spec: ModelSpec) -> Files:
    """Return a network as ONNX with the spec's activation, and the spec in the metadata of every file."""
    if spec.task is Task.PROMPTED:
        logits = decoder_graph_from_network(network, spec)
        return Files(logits, with_spec(encoder_graph_from_network(network, spec), spec), add_activation(logits, spec))
    logits = logits_graph_from_network(network, spec)
    return Files(logits, add_activation(logits, spec))


def stored_files(bundle: Bundle, entry: Mapping[str, object]) -> Files:
    """Return a bundle's graphs of one FP32 entry. Raises GateMissed when they end in another activation."""
    model, decoder = (
        onnx.load(bundle.folder / str(entry[name]), load_external_data=False) if entry.get(name) else None
        for name in ("file", "prompt_decoder")
    )
    assert model is not None, "read_bundle refuses an entry without a file"
    return Files(without_activation(decoder or model, bundle.spec), model, decoder)


@contextmanager
def opened_files(files: Files) -> Iterator[Graphs]:
    """Open all graphs of a model as `opened` does."""
    with ExitStack() as stack:
        logits, model = (stack.enter_context(opened(graph)) for graph in (files.logits, files.model))
        decoder = None if files.decoder is None else stack.enter_context(opened(files.decoder))
        yield Graphs(logits, model, decoder)


@contextmanager
def opened(graph: onnx.ModelProto) -> Iterator[Session]:
    """Open a graph with the runtime's own CPU backend, from a file as a site would. Raises ModelRefused."""
    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph.SerializeToString())
        with open_session(path, "cpu") as session:
            yield session

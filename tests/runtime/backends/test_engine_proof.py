from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from fake_trt_build import ILayer, INetworkDefinition
from fake_trt_parts import ITensor
from mammo_runtime.backends.engine_proof import (
    Layer,
    layers_of_engine,
    layers_of_network,
    proof_of,
    require_precision,
    types_of_network,
)
from mammo_runtime.errors import GateMissed, ModelRefused
from mammo_runtime.spec import Precision

INT8_FORMAT = "Thirty-two wide channel vectorized row major Int8 format."


def network(*layers: ILayer) -> INetworkDefinition:
    made = INetworkDefinition()
    made._layers = layers
    return made


def quantised(weights_too: bool = True) -> INetworkDefinition:
    """A convolution whose data and weights (its second input) come out of DequantizeLinear, weights by a shuffle."""
    data, weights = ITensor("data", "HALF"), ITensor("weights", "HALF")
    layers = [ILayer("dq", "DEQUANTIZE", [ITensor("q", "INT8"), ITensor("scale", "HALF")], data)]
    source = ITensor("w", "INT8" if weights_too else "HALF")
    kind = "DEQUANTIZE" if weights_too else "CONSTANT"
    between = ITensor("between", "HALF")
    layers.append(ILayer("wdq", kind, [source], between))
    layers.append(ILayer("shuffle", "SHUFFLE", [between], weights))
    layers.append(ILayer("conv", "CONVOLUTION", [data, weights], ITensor("out", "HALF")))
    return network(*layers)


def test_int8_is_what_is_dequantised_on_both_sides() -> None:
    assert [layer.precision for layer in layers_of_network(quantised())] == ["int8"]
    assert [layer.precision for layer in layers_of_network(quantised(weights_too=False))] == ["fp16"]
    assert types_of_network(quantised()) == {"HALF": 4}


def test_products_of_sizes_and_what_does_not_compute_are_left_out() -> None:
    sizes = ILayer("sizes", "MATRIX_MULTIPLY", [ITensor("a", "INT64")], ITensor("b", "INT64"))
    resize = ILayer("up", "RESIZE", [ITensor("a", "FLOAT")], ITensor("b", "FLOAT"))
    assert layers_of_network(network(sizes, resize)) == ()


def entry(name: str, reads: str, kind: str = "CaskConvolution", **more: Any) -> dict[str, Any]:
    tensor = {"Name": "x", "Dimensions": [1, 8, 4, 4], "Format/Datatype": reads}
    return {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor], **more}


def information(*entries: Mapping[str, Any] | str) -> str:
    return json.dumps({"Layers": list(entries), "Bindings": ["image", "probability"]})


PROMISED = tuple(Layer(f"c{k}", "int8" if k < 9 else "fp16", (f"c{k}",)) for k in range(10))


@pytest.mark.parametrize(
    ("one", "precision"),
    [
        (entry("c1", "Half"), "fp16"),
        (entry("c1", INT8_FORMAT, Weights={"Type": "Int8", "Count": 9}), "int8"),
        (entry("c1", "Channel major FP16 format where channel % 8 == 0"), "fp16"),
        (entry("c1", "Row major linear FP32"), "fp32"),
        (entry("c1", "Half", Weights={"Type": "Float"}), "fp32"),
        (entry("c1", "Float", TacticName="sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"), "tf32"),
        (entry("c1", "N/A due to dynamic shapes"), "other"),
        ({"Name": "c1", "LayerType": "CaskConvolution", "Precision": "Half"}, "fp16"),
    ],
)
def test_a_layers_precision_is_the_dearest_it_reads(one: dict[str, Any], precision: str) -> None:
    assert [layer.precision for layer in layers_of_engine(information(one), PROMISED)] == [precision]


def test_layers_are_known_by_metadata_name_or_kind() -> None:
    found = layers_of_engine(
        information(
            entry("fused", "Half", "kgen", Metadata="[ONNX Layer: c1]\x1e[ONNX Layer: relu]\x1e[ONNX Layer: c2]"),
            entry("c3 + PWN(relu)", "Half"),
            entry("__myl_Gemm", "Half", "gemm"),
            entry("Reformatting CopyNode for c4", "Half", "Reformat", Metadata="[ONNX Layer: c4]"),
            entry("resize", "Half", "Resize"),
            "only a name",
        ),
        PROMISED,
    )
    assert [(layer.name, layer.nodes) for layer in found] == [
        ("fused", ("c1", "c2")),
        ("c3 + PWN(relu)", ("c3",)),
        ("__myl_Gemm", ()),
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}'])
def test_what_is_no_layer_information_is_refused(text: str) -> None:
    with pytest.raises(ModelRefused, match="its precision is not proved"):
        layers_of_engine(text, PROMISED)


def told(precision: str, count: int = 10, **other: str) -> str:
    return information(*(entry(f"c{k}", other.get(f"c{k}", precision)) for k in range(count)))


def test_an_engine_that_keeps_its_label_passes() -> None:
    proof = proof_of(PROMISED, told("Int8", c9="Half"))
    assert (proof.basis, proof.counts) == ("engine layers", {"fp16": 1, "int8": 9})
    require_precision(proof, Precision.INT8)


def test_an_int8_engine_that_runs_in_half_is_refused() -> None:
    """All of it is in a type that the label allows, but not where the graph asks for eight bits."""
    with pytest.raises(GateMissed, match=r"not int8.*fp16 100%; the graph asks for int8 in 90% of them.*it in 0%"):
        require_precision(proof_of(PROMISED, told("Half")), Precision.INT8)


def test_an_fp16_engine_in_fp32_is_refused() -> None:
    halves = tuple(Layer(one.name, "fp16", one.nodes) for one in PROMISED)
    with pytest.raises(GateMissed, match=r"not fp16.*fp32 100%"):
        require_precision(proof_of(halves, told("Float")), Precision.FP16)
    with pytest.raises(GateMissed, match=r"fp16 80%, fp32 20%; 90% must be fp16"):
        require_precision(proof_of(halves, told("Half", c0="Float", c1="Float")), Precision.FP16)


def test_time_counts_before_number() -> None:
    halves = tuple(Layer(one.name, "fp16", one.nodes) for one in PROMISED)
    slow = {f"c{k}": 1.0 for k in range(10)} | {"c0": 30.0}
    proof = proof_of(halves, told("Half", c0="Float"), slow)
    assert proof.basis == "layer times"
    with pytest.raises(GateMissed, match="of the time of its layers"):
        require_precision(proof, Precision.FP16)
    require_precision(proof_of(halves, told("Half", c0="Float")), Precision.FP16)


def test_an_engine_that_tells_nothing_rests_on_its_typed_network() -> None:
    block = information(entry("{ForeignNode[c0...c9]}", "Float", "Myelin"))
    for proof in (proof_of(PROMISED, block), proof_of(PROMISED)):
        assert proof.basis == "typed network"
        assert proof.note
        require_precision(proof, Precision.INT8)
    assert json.loads(json.dumps(proof.to_dict()))["promised"] == {"fp16": 1, "int8": 9}


def test_a_graph_without_products_has_nothing_to_prove() -> None:
    require_precision(proof_of(()), Precision.FP16)

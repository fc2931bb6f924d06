"""The search for the groups to revert: planted culprits are found, with few tries, and again after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mammo_export.difference import Difference
from mammo_export.files import opened
from mammo_export.memory import Memory
from mammo_export.sensitivity import Mix, find_mix, worth_by_share
from mammo_export.workload import multiply_adds
from tiny_export import Exported


@dataclass(frozen=True)
class Part:
    """A group."""

    name: str
    nodes: tuple[str, ...] = ()


@dataclass
class World:
    """Groups whose losses add up; counts what is judged."""

    losses: Mapping[str, float]
    seed: str = ""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Group → a lesion that is lost while it is in the lower precision."""
    judged: list[frozenset[str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    stop_after: int = 10**6

    def make(self, reverted: frozenset[str]) -> onnx.ModelProto:
        model = onnx.ModelProto(producer_name=self.seed)
        helper.set_model_props(model, {name: "reverted" for name in sorted(reverted)})
        return model

    def judge(self, model: onnx.ModelProto) -> Difference:
        reverted = frozenset(p.key for p in model.metadata_props)
        self.judged.append(reverted)
        if len(self.judged) > self.stop_after:
            raise KeyboardInterrupt
        change = -sum(loss for name, loss in self.losses.items() if name not in reverted)
        lost = tuple(lesion for name, lesion in self.lost.items() if name not in reverted)
        return Difference(9, 9, 9, change, change, change, mean_absolute=abs(change), lost=lost)

    def search(self, folder: Path, limit: float = 0.005, **options: object) -> Mix:
        def passes(found: Difference) -> bool:
            return found.mean is not None and found.mean >= -limit and not found.lost

        parts = [Part(name) for name in self.losses]
        return find_mix(parts, self.make, self.judge, passes, Memory(folder), self.said.append, **options)  # type: ignore[arg-type]


def world(**culprits: float) -> World:
    """Return forty groups that lose next to nothing, but for the culprits."""
    return World({**{f"g{k:02d}": 1e-5 for k in range(40)}, **culprits})


def test_what_passes_needs_no_search(tmp_path: Path) -> None:
    here = world()
    mix = here.search(tmp_path)
    assert (mix.reverted, mix.ranking, mix.passes) == ((), (), True)
    assert len(here.judged) == 1
    asked = world().search(tmp_path, rank_always=True)
    assert asked.reverted == ()
    assert len(asked.ranking) == 40, "the report shows the ranking all the same"


def test_the_culprits_are_reverted_and_no_others(tmp_path: Path) -> None:
    here = world(g07=0.02, g31=0.08, g15=0.006)
    mix = here.search(tmp_path)
    assert mix.reverted == ("g31", "g07", "g15"), "worst first"
    assert [effect.group for effect in mix.ranking[:3]] == ["g31", "g07", "g15"]
    assert mix.ranking[0].change == pytest.approx(-0.08)
    assert mix.passes
    assert mix.why == "it passes with the 3 worst of 40 groups reverted, not with fewer"
    assert mix.difference.mean is not None
    assert mix.difference.mean >= -0.005
    assert len(here.judged) <= 1 + 40 + 4, "whole, each alone, then 1, 2, 4, 3"
    assert mix.ranking_record()[0]["group"] == "g31"


def test_lost_lesions_count_more_than_dice(tmp_path: Path) -> None:
    here = World({"a": 0.004, "b": 0.0, "c": 0.001}, lost={"b": "p3"})
    mix = here.search(tmp_path)
    assert mix.ranking[0].group == "b"
    assert mix.ranking[0].lost == 1
    assert mix.reverted == ("b",)


def test_progress_is_told_with_what_is_left(tmp_path: Path) -> None:
    here = world(g05=0.02)
    here.search(tmp_path)
    assert here.said[0].startswith("sensitivity: group 1 of 40 (g00): -0.0000, about ")
    assert here.said[0].endswith(" left")
    assert here.said[-1] == "mixed precision: the 1 worst of 40 groups reverted pass"


@pytest.mark.parametrize("stop_after", [0, 1, 20, 41, 43])
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, stop_after: int) -> None:
    culprits = {"g07": 0.02, "g31": 0.08, "g15": 0.006}
    whole = world(**culprits)
    expected = whole.search(tmp_path / "whole")
    killed = world(**culprits)
    killed.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        killed.search(tmp_path / "killed")
    again = world(**culprits)
    assert again.search(tmp_path / "killed") == expected
    assert len(again.judged) == len(whole.judged) - stop_after, "nothing is judged twice"


def test_other_models_or_pictures_do_not_find_old_results(tmp_path: Path) -> None:
    world(g07=0.02).search(tmp_path)
    other = world(g07=0.02)
    other.seed = "other weights"
    assert len((other.search(tmp_path), other.judged)[1]) > 40
    pictures = world(g07=0.02)
    assert len((pictures.search(tmp_path, about={"rows": "abc"}), pictures.judged)[1]) > 40
    same = world(g07=0.02)
    same.search(tmp_path)
    assert same.judged == []


def test_it_stops_where_it_is_no_longer_worthwhile(tmp_path: Path) -> None:
    heavy = {f"h{k}": 0.02 for k in range(6)}
    here = World({**heavy, "light": 0.0})
    share = worth_by_share({**dict.fromkeys(heavy, 10.0), "light": 40.0}, least=0.7)
    mix = here.search(tmp_path, still_worth=share)
    assert not mix.passes
    assert mix.reverted == ("h0", "h1", "h2"), "three of ten tenths may go"
    assert mix.why == "it does not pass with the 3 worst of 7 groups reverted, and more would not be worthwhile"
    none = World({"only": 0.02}).search(tmp_path / "none", still_worth=lambda reverted: not reverted)
    assert (none.passes, none.reverted) == (False, ())
    assert "would not be worthwhile" in none.why


def test_a_caller_may_measure_whether_it_is_worthwhile(tmp_path: Path) -> None:
    asked: list[int] = []

    def timed(reverted: frozenset[str]) -> bool:
        asked.append(len(reverted))
        return True

    assert world(g03=0.02).search(tmp_path, still_worth=timed).passes
    assert len(asked) <= 7, "halving, not one by one: each may be a measurement of seconds"


def test_without_any_way_to_pass_everything_was_tried(tmp_path: Path) -> None:
    mix = World({"a": 0.02, "b": 0.02}, lost={"never": "p1"}).search(tmp_path)
    assert not mix.passes
    assert mix.why == "it does not pass with the 2 worst of 2 groups reverted, and those are all"


def test_fewer_pictures_may_rank_but_not_decide(tmp_path: Path) -> None:
    here, quick = world(g07=0.02), world(g07=0.5)
    mix = here.search(tmp_path, rank_by=quick.judge)
    assert mix.ranking[0].change == pytest.approx(-0.5, abs=1e-3)
    assert mix.reverted == ("g07",)
    assert mix.difference.mean == pytest.approx(-39e-5)
    assert len(here.judged) == 2


def test_shares_without_work_are_never_worthwhile() -> None:
    assert not worth_by_share({})(frozenset())
    rule = worth_by_share({"a": 1.0, "b": 1.0})
    assert rule(frozenset({"a"}))
    assert not rule(frozenset({"a", "b"}))


def test_multiply_adds_of_a_network_are_counted(exported: Exported) -> None:
    nodes = [node for node in exported.model.graph.node if node.op_type == "Conv"]
    counted = multiply_adds(exported.model, [Part(node.name, (node.name,)) for node in nodes])
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in exported.model.graph.initializer}
    first = nodes[0]
    assert counted[first.name] == sizes[first.input[1]] * 32 * 32, "64 x 64 with stride 2"
    assert min(counted.values()) > 0


def small(nodes: list[onnx.NodeProto], weights: Mapping[str, tuple[int, ...]], given: list[int], made: list[int],
          ) -> onnx.ModelProto:  # fmt: skip
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", given), ("y", made))]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors))


@pytest.mark.parametrize(
    ("operator", "options", "weight", "given", "made", "expected"),
    [
        ("Conv", {"group": 8, "pads": [1] * 4}, (8, 1, 3, 3), [1, 8, 6, 6], [1, 8, 6, 6], 8 * 9 * 36),
        ("ConvTranspose", {"strides": [2, 2]}, (4, 3, 2, 2), [1, 4, 5, 5], [1, 3, 10, 10], 4 * 3 * 4 * 25),
        ("MatMul", {}, (7, 5), [2, 3, 7], [2, 3, 5], 2 * 3 * 5 * 7),
        ("Gemm", {"transB": 1}, (5, 7), [3, 7], [3, 5], 3 * 5 * 7),
        ("Gemm", {"transA": 1}, (7, 5), [7, 3], [3, 5], 3 * 5 * 7),
    ],
)
def test_each_operators_work(operator: str, options: dict[str, object], weight: tuple[int, ...], given: list[int],
                             made: list[int], expected: int) -> None:  # fmt: skip
    node = helper.make_node(operator, ["x", "w"], ["y"], name="n", **options)
    graph = small([node], {"w": weight}, given, made)
    assert multiply_adds(graph, [Part("n", ("n",)), Part("other", ("relu",))]) == {"n": expected, "other": 0}


def test_a_real_graph_with_one_bad_layer_is_mended(tmp_path: Path) -> None:
    """Three convolutions, rounded as eight bits would; the second's range was measured a hundred times too wide."""
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32) for k in range(3)}
    batch = rng.normal(0, 1, (1, 4, 8, 8)).astype(np.float32)

    def make(reverted: frozenset[str]) -> onnx.ModelProto:
        steps = {name: np.abs(w).max() / (127 if name != "w1" else 1.27) for name, w in weights.items()}
        used = {n: w if n in reverted else np.round(w / steps[n]) * steps[n] for n, w in weights.items()}
        nodes = [helper.make_node("Conv", [a, n], [b], name=n, pads=[1] * 4)
                 for n, a, b in zip(weights, "xab", "aby")]  # fmt: skip
        model = small(nodes, {}, [1, 4, 8, 8], [1, 4, 8, 8])
        model.graph.initializer.extend(numpy_helper.from_array(w.astype(np.float32), n) for n, w in used.items())
        model.ir_version, model.opset_import[0].version = 10, 18
        return model

    def answer(model: onnx.ModelProto) -> np.ndarray:
        with opened(model) as session:
            return session.run(batch)

    true = answer(make(frozenset(weights)))

    def judge(model: onnx.ModelProto) -> Difference:
        error = float(np.abs(answer(model) - true).mean() / np.abs(true).mean())
        return Difference(1, 1, 1, -error, -error, -error, mean_absolute=error)

    passes: Callable[[Difference], bool] = lambda found: found.mean is not None and found.mean > -0.05  # noqa: E731
    mix = find_mix([Part(n) for n in weights], make, judge, passes, Memory(tmp_path), lambda line: None)
    assert (mix.reverted, mix.passes) == (("w1",), True)

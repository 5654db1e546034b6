"""The authors' numbers come back: every fixture, every output, in every precision it states.

`pytest tests/test_parity.py --fixtures DIR` runs the fixtures of a folder beside those in tests/fixtures, and prints a
table of the largest errors. What a fixture is, its tensors say; what nobody can compute or compare is a failure.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import python, quick
from parity import eercf, glscl, measures, modules, pig, prompt_switch, training, whole
from parity.fixture import Fixture, find
from parity.modules import Runs
from parity.tolerance import PRECISIONS, UNIT, Limit, parse
from safetensors.torch import load_file, save_file

from distill.release.release import load as load_release

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Kind:
    """A sort of fixture: the tensors that it has and no other sort has, and what computes its outputs."""

    run: Callable[[Fixture, torch.dtype], Runs]
    has: str  # names, or beginnings of names that end with a dot
    lacks: str = ""

    def fits(self, fixture: Fixture) -> bool:
        """Whether a fixture is of this sort."""
        return all(_holds(fixture, n) for n in self.has.split()) and not any(
            _holds(fixture, n) for n in self.lacks.split()
        )


def _holds(fixture: Fixture, name: str) -> bool:
    return any(n.startswith(name) if name.endswith(".") else n == name for n in fixture.tensors)


KINDS = {
    "temporal transformer": Kind(modules.temporal_frames, "input.frames output.transformer_out"),
    "CLIP4Clip head": Kind(
        modules.clip4clip,
        "input.text input.frames output.logits output.video_embedding",
        lacks="input.words weight.frameLinear.",
    ),
    "X-CLIP head": Kind(modules.xclip, "input.sentence input.words input.frames weight.global_mat_weight"),
    "TS2-Net head": Kind(modules.ts2net, "input.text input.tokens output.contextual_cls_frames"),
    "X-Pool head": Kind(modules.xpool, "input.text input.frames weight.pool_frames."),
    "TeachCLIP head": Kind(modules.teachclip, "input.text input.frames weight.frameLinear."),
    "EERCF training": Kind(eercf.training, "input.text input.patches weight.frame_logit_weight output.pearson_video"),
    "EERCF evaluation": Kind(
        eercf.evaluation, "input.text input.patches weight.frame_logit_weight", lacks="output.pearson_video"
    ),
    "GLSCL training": Kind(glscl.training, "input.text_cls weight.spatial_queries output.loss_total"),
    "GLSCL evaluation": Kind(
        glscl.evaluation, "input.text_cls weight.spatial_queries output.similarity", lacks="output.loss_total"
    ),
    "Prompt Switch layer": Kind(prompt_switch.layer, "input.hidden output.hidden weight.clip.vision_model."),
    "Prompt Switch tower": Kind(prompt_switch.tower, "input.pixels_one_chunk weight.clip.vision_model."),
    "Prompt Switch training": Kind(
        prompt_switch.training, "input.input_ids input.video weight.caption_head.weight output.caption_logits"
    ),
    "PIG attention": Kind(pig.attention, "input.tokens weight.q_proj.weight output.global_attention"),
    "PIG tower": Kind(pig.tower, "input.video input.video_other_length weight.embeddings.added_cls"),
    "PIG generator": Kind(pig.generator, "input.tokens weight.generator.clip_reconstructor."),
    "PIG interaction": Kind(pig.interaction, "input.pseudo_query input.tokens weight.fusioner."),
    "PIG losses": Kind(pig.losses, "input.text input.video input.pseudo_query output.generation"),
    "PIG whole model": Kind(pig.whole, "input.input_ids input.video weight.encoder.clipmodel."),
    "PIG gradients": Kind(pig.gradients, "input.input_ids input.video output.gradient_norms"),
    "optimiser, PIG": Kind(pig.optimiser, "input.param. input.grads."),
    "frame numbers, PIG": Kind(pig.frames, "input.frames_in_video output.test_indices"),
    "token shift": Kind(modules.token_shift, "input.tokens output.shifted"),
    "token scores": Kind(modules.token_scores, "input.tokens weight.visual_token_selector. output.scores"),
    "token selection": Kind(modules.selection, "input.tokens weight.visual_token_selector. output.selected_tokens"),
    "perturbed top-k": Kind(modules.perturbed, "input.scores input.noise input.grad_indicators"),
    "losses": Kind(measures.losses, "input.student_logits input.afa_scores"),
    "optimiser": Kind(measures.optimizer, "input.param0. input.grad."),
    "metrics": Kind(measures.metrics, "input.similarity output.t2v.ranks0"),
    "metrics, several captions": Kind(measures.metrics, "input.similarity input.caption_owner"),
    "frame numbers": Kind(measures.frames, "input.num_frames input.fps output.clip4clip."),
    "frame numbers, GLSCL": Kind(glscl.frames, "input.num_frames input.fps output.glscl."),
    "frame numbers, Prompt Switch": Kind(prompt_switch.frames, "input.num_frames output.promptswitch."),
    "whole model": Kind(
        whole.whole, "input.input_ids input.video weight.clip.", lacks="input.teacher_logits output.caption_logits"
    ),
    "training": Kind(training.training, "input.input_ids input.video input.teacher_logits weight.clip."),
}


def kind_of(fixture: Fixture) -> Kind:
    """The one kind that a fixture is of."""
    fitting = [name for name, kind in KINDS.items() if kind.fits(fixture)]
    assert len(fitting) == 1, f"{fixture.path}: of no known kind, or of several: {fitting}; {sorted(fixture.tensors)}"
    return KINDS[fitting[0]]


LONG = "train_teachclip_5steps"  # takes as long as all other fixtures together


def _relative(paths: list[Path]) -> list[Path]:
    """Paths as short as they can be said."""
    here = Path.cwd()
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in paths]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per fixture."""
    if "fixture_path" in metafunc.fixturenames:
        folders = [Path(folder) for folder in metafunc.config.getoption("parity")]
        empty = [folder for folder in folders if not find(folder)]
        if empty:
            raise pytest.UsageError(f"--fixtures {empty[0]}: no fixtures there")
        paths = [path for folder in [FIXTURES, *folders] for path in find(folder)]
        rows = quick(paths, [path for path in paths if path.name != LONG])
        metafunc.parametrize("fixture_path", rows, ids=map(str, _relative(paths)))


@dataclass(frozen=True)
class ComparedRow:
    """How far one output was in one run."""

    output: str
    run: str
    error: float
    limit: Limit

    def close(self) -> bool:
        """Whether it is as near as the fixture wants it."""
        return self.error <= self.limit.value


@torch.no_grad()
def compare(fixture: Fixture) -> list[ComparedRow]:
    """Every output of a fixture in every precision and variant; an error if one is not computed or not understood."""
    kind, expected = kind_of(fixture), fixture.outputs()
    tolerance = parse(fixture.sidecar["tolerance"]).measured(fixture.sidecar.get("check", {}).get("unit", ""))
    tolerance.check_names(list(expected))
    rows = []
    for precision in tolerance.precisions():
        for label, found in kind.run(fixture, PRECISIONS[precision]):
            uncompared = expected.keys() - found.keys()
            assert not uncompared, f"nothing computes {', '.join(sorted(uncompared))}"
            for name, value in expected.items():
                limit = tolerance.limit(name, value, precision)
                rows.append(ComparedRow(name, f"{precision} {label}".strip(), limit.error(found[name], value), limit))
    fixture.check_switches()
    return rows


def test_fixture(fixture_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The authors' outputs come back."""
    fixture = Fixture(fixture_path)
    rows = compare(fixture)
    for row in rows:
        record_property("parity", [str(fixture_path), row.output, row.run, row.error, row.limit.value, row.limit.kind])
    bad = [f"{row.output}: {row.error:.3g} in {row.run}, {row.limit}" for row in rows if not row.close()]
    assert not bad, "\n".join(bad)


def test_the_command_converts_to_the_same_outputs(tmp_path: Path) -> None:
    """The converter as a process, as a user calls it."""
    fixture = Fixture(FIXTURES / "e2e_teachclip")
    options = whole.convert_options(fixture, "teachclip", "on")
    torch.save(fixture.part("weight"), tmp_path / "best_model.bin")
    done = python(
        *("tools/convert_checkpoint.py", tmp_path / "best_model.bin", "--kind", "teachclip"),
        *("--words", str(options.words), "--frames", str(options.frames), "--out", tmp_path / "student"),
    )
    assert "tensors converted, 0 unused" in done.stdout
    with torch.no_grad():
        found = whole.run(load_release(tmp_path / "student").model, fixture, torch.float32, 1.0)
    tolerance = parse(fixture.sidecar["tolerance"])
    for name, value in fixture.outputs().items():
        limit = tolerance.limit(name, value, "float32")
        assert limit.error(found[name], value) <= limit.value, name


def altered(folder: Path, name: str, tensors: dict[str, torch.Tensor], **sidecar: object) -> Fixture:
    """A stored fixture with some tensors and some of its sidecar replaced, consistent in itself."""
    held = load_file(FIXTURES / f"{name}.safetensors") | tensors
    save_file(held, folder / "altered.safetensors")
    content = (folder / "altered.safetensors").read_bytes()
    about = json.loads((FIXTURES / f"{name}.json").read_text()) | sidecar
    shapes = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in held.items()}
    about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "shapes": shapes}
    (folder / "altered.json").write_text(json.dumps(about))
    return Fixture(folder / "altered")


def test_an_output_that_differs_is_found(tmp_path: Path) -> None:
    logits = Fixture(FIXTURES / "m02_clip4clip_meanp_logits").tensors["output.logits"].clone()
    logits[2, 1] += 2e-9
    rows = compare(altered(tmp_path, "m02_clip4clip_meanp_logits", {"output.logits": logits}))
    assert {(row.output, row.run) for row in rows if not row.close()} == {("logits", "float64")}
    logits[2, 1] = torch.nan
    rows = compare(altered(tmp_path, "m02_clip4clip_meanp_logits", {"output.logits": logits}))
    assert len([row for row in rows if not row.close()]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compat": {"afa_mask": "sometimes"}}, r"compat\.afa_mask: 'sometimes' cannot be reproduced"),
        ({"compat": {"residual": "single"}}, r"compat\.residual: 'single' cannot be reproduced"),
        ({"compat": {"frame_dropout": "on"}}, r"compat\.frame_dropout: an unknown switch"),
        ({"tolerance": {"float64": "1e-9 on scores_of_nothing"}}, "no output is meant by 'scores_of_nothing'"),
    ],
)
def test_what_cannot_be_reproduced_fails(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        compare(altered(tmp_path, "m12_afa", {}, **changes))


def test_what_nobody_computes_or_knows_fails(tmp_path: Path) -> None:
    extra = {"output.frame_colours": torch.zeros(3)}
    with pytest.raises(AssertionError, match="nothing computes frame_colours"):
        compare(altered(tmp_path, "m12_afa", extra))
    unknown = altered(tmp_path, "m12_afa", {})
    unknown.tensors = {"input.colours": torch.zeros(3)}
    with pytest.raises(AssertionError, match="of no known kind"):
        compare(unknown)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    altered(tmp_path, "m12_afa", {})
    file = tmp_path / "altered.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError, match="not the tensors of its sidecar"):
        Fixture(tmp_path / "altered")


ONE, HALF = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("stated", "output", "precision", "value", "kind"),
    [
        (1e-9, "logits", "float64", 1e-9, "absolute"),
        ("exact", "logits", "float32", 0, "absolute"),
        ("1e-4 (small variances amplify rounding)", "contextual_frames", "float32", 1e-4, "absolute"),
        ({"float32": "1e-4 on logits, 1e-5 elsewhere"}, "meanpool_logits", "float32", 1e-4, "absolute"),
        ({"float32": "1e-4 on logits, 1e-5 elsewhere"}, "frame_scores", "float32", 1e-5, "absolute"),
        ("5e-4 on similarity (logit units), 2e-5 elsewhere; top-3 by score", "similarity_shift_off", None, 5e-4, ""),
        ("1e-3 on the scaled terms (0.01), 1e-5 on relevance and video_embedding", "word_frame", None, 1e-3, ""),
        ("1e-3 on the scaled terms (0.01), 1e-5 on relevance and video_embedding", "aosm_unscaled", None, 1e-5, ""),
        ({"shifted": "exact", "attention_out": "1e-9 float64, 1e-5 float32"}, "attention_out", "float32", 1e-5, ""),
        ({"ranks": "exact", "metrics": 1e-6}, "t2v.Std_Rank", "float32", 1e-6, ""),
        ("losses 2e-4 relative, first8 and final.* 1e-4 absolute", "total", None, 2e-4, "relative"),
        ("losses 2e-4 relative, first8 and final.* 1e-4 absolute", "final.frameLinear.bias", None, 1e-4, "absolute"),
        ("1e-5 on scores, queries and gradients; losses 1e-4 RELATIVE", "text_queries", None, 1e-5, "absolute"),
        ("1e-5 on scores, queries and gradients; losses 1e-4 RELATIVE", "loss_IDL", None, 1e-4, "relative"),
        (
            "similarity 1e-5; others 2e-5 relative to the largest absolute value of the output",
            "similarity",
            None,
            1e-5,
            "",
        ),
        (
            "selected exact; others 2e-5 relative to the largest absolute value of the output",
            *("video_tokens", None, 2e-5, "relative to the largest"),
        ),
        (
            {"float32": "losses 1e-5; gradients 1e-3 relative to the largest of the tensor"},
            *("gradient_norms", "float32", 1e-3, "relative to the largest"),
        ),
        ({"test_indices": "exact", "train_min, train_max": "bounds of 400 draws"}, "train_max", "float32", 0, ""),
        ("sums 1e-4 relative to the abs-sum", "checksum.x.sums", None, 1e-4, "relative to the abs-sum"),
    ],
)
def test_tolerances_are_read_as_they_are_meant(stated, output, precision, value, kind) -> None:
    limit = parse(stated).limit(output, ONE, precision or "float32")
    assert (limit.value, limit.kind) == (value, kind or "absolute")


@pytest.mark.parametrize("stated", ["as close as can be", None, True, "1e-4 or so on logits, roughly", ["1e-4"]])
def test_a_tolerance_that_is_not_understood_is_an_error(stated) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        parse(stated)


def test_integers_are_compared_exactly_and_errors_in_the_terms_of_the_limit() -> None:
    ranks = torch.tensor([1, 2, 3])
    limit = parse(1e-3).limit("ranks0", ranks, "float32")
    assert (limit.value, limit.error(ranks + 1, ranks)) == (0, 3)
    assert Limit((), 1e-3).error(ONE, HALF) == 0.5
    assert Limit((), 1e-3, "relative").error(ONE, HALF) == 1
    sums = torch.tensor([[0.5, 4.0]])
    assert Limit((), 1e-3, "relative to the abs-sum").error(sums + 1, sums) == 0.25
    assert Limit((), 1e-3).error(ONE * torch.nan, HALF) == torch.inf
    assert Limit((), 1e-3, "relative to the largest").error(ONE, HALF * torch.tensor([1, 2, 4])) == 0.5


def test_a_number_without_a_unit_is_in_that_of_the_sidecars_deviations() -> None:
    limits = parse({"float64": "1e-9", "float32": "losses 1e-5; gradients 1e-3 relative"})
    plain, largest = (limits.measured(unit) for unit in ("", UNIT))
    assert [limit.kind for limit in plain.limits] == ["absolute", "absolute", "relative"]
    assert [limit.kind for limit in largest.limits] == ["relative to the largest"] * 2 + ["relative"]

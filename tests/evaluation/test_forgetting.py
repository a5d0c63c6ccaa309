"""The forgetting check: it passes where nothing has changed, finds a single bit that has, and its contrast is real forgetting."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics.pairwise import cosine_similarity
from test_model import TOPICS, WordEmbedder, rows, trained
from test_studio import make_studio, wait_for  # noqa: F401 - a fixture
from test_training import loss_of

from multilobe_ui import MultiLobeModel
from multilobe_ui.assets import demo_bundle
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, DataError, LobeError
from multilobe_ui.evaluation.forgetting import drift, measure
from multilobe_ui.evaluation.forgetting.drift import Drift, farthest
from multilobe_ui.evaluation.forgetting.measure import ForgettingReport, ForgettingSettings, checking, forgetting_check
from multilobe_ui.evaluation.forgetting.snapshot import difference, taking, tensors_of
from multilobe_ui.progress import Progress, finish
from multilobe_ui.routers import RoutingRows
from multilobe_ui.settings import TrainingConfig
from multilobe_ui.training.lobe import train_lobe

QUICK: dict[str, Any] = {"rows": 8, "held_out": 3, "epochs": 2, "probes": 4}
FIRST, SECOND, THIRD = TOPICS


@pytest.fixture(scope="module")
def sound(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> MultiLobeModel:
    return trained(backbone, tmp_path_factory.mktemp("home"))


@pytest.fixture
def own(base_folder: Callable[..., Path], sound: MultiLobeModel, tmp_path: Path) -> Callable[..., MultiLobeModel]:
    """own(lobes) -> a model of its own, whose base and lobes a test may change."""

    def make(lobes: bool = True) -> MultiLobeModel:
        home = shutil.copytree(sound.home, tmp_path / "home") if lobes else None
        return MultiLobeModel(Backbone.from_pretrained(base_folder(), device="cpu"), home=home, embedder=WordEmbedder())

    return make


@pytest.fixture(scope="module")
def report(sound: MultiLobeModel) -> ForgettingReport:
    return forgetting_check(sound, **QUICK)


def flip(tensor: torch.Tensor, place: int, bit: int = 22) -> None:
    """Flip one bit of one float32: the highest of its fraction, or the lowest."""
    bits = tensor.detach().view(torch.int32)
    bits[np.unravel_index(place % bits.numel(), bits.shape)] ^= 1 << bit


def hostile(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Let training do something besides, once."""
    honest, done = train_lobe, []

    def train(*args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
        result = yield from honest(*args, **kwargs)
        if not done:
            done.append(do())
        return result

    for module in (measure, drift):
        monkeypatch.setattr(module, "train_lobe", train)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- a sound model ---------------------------------------------------------------------------------------------------------


def test_a_sound_model_passes(report: ForgettingReport, sound: MultiLobeModel) -> None:
    assert report.passed and report.reasons == [] and not report.stopped
    base = report.base
    assert base.same and base.logits_same and base.source_same and base.hash_before == base.hash_after
    assert (base.max_difference, base.mean_kl) == (0.0, 0.0) and base.fingerprint == sound.backbone.fingerprint
    assert base.tensors == len(list(sound.backbone.model.parameters())) + len(list(sound.backbone.model.buffers()))
    assert base.probes == 8  # four of the lobes, four everyday ones
    assert [lobe.name for lobe in report.lobes] == list(TOPICS)
    for lobe in report.lobes:
        assert (lobe.same, lobe.max_difference, lobe.mean_kl, lobe.files_same, lobe.fingerprint_same) == (True, 0, 0, True, True)
    assert report.newest == THIRD and report.trained["rows"] == 8
    assert report.trained["steps"] == 2  # two epochs of one batch of eight, as on the lobe's card
    assert report.trained["loss_after"] < report.trained["loss_before"]
    assert json.loads(json.dumps(report.to_json(), allow_nan=False)) == report.to_json()


def test_the_check_leaves_nothing_behind(sound: MultiLobeModel, tmp_path: Path) -> None:
    home, lobes, version = listing(sound.home), sound.bank.lobes, sound.routers.version
    work = checking(sound, ForgettingSettings(**QUICK), data=None, made=tmp_path / "made", stop=threading.Event())
    next(work)
    assert (tmp_path / "made").is_dir()
    finish(work)
    assert list(tmp_path.iterdir()) == []
    work = checking(sound, ForgettingSettings(**QUICK), data=None, made=tmp_path / "made", stop=threading.Event())
    for _ in range(6):
        next(work)
    work.close()  # the app is closed in the middle
    assert list(tmp_path.iterdir()) == []
    assert (listing(sound.home), sound.bank.lobes, sound.routers.version) == (home, lobes, version)


def test_progress_runs_from_the_first_step_to_the_last(sound: MultiLobeModel) -> None:
    told: list[Progress] = []
    forgetting_check(sound, progress=told.append, first=FIRST, second=SECOND, **QUICK)
    steps = [p.step for p in told]
    assert steps == sorted(steps) and steps[0] == 0 and {p.steps for p in told} == {told[0].steps}
    assert steps[-1] == told[0].steps - 1  # the last one says what is being done, not what is over
    assert list(dict.fromkeys(p.phase for p in told)) == [
        "Hashing the weights and asking the probes", f"Training {THIRD} again",
        f"One adapter learns {FIRST}", f"The same adapter learns {SECOND}", "Comparing bit for bit",
    ]  # fmt: skip
    assert any("loss" in p.values for p in told) and any("held_out_loss" in p.values for p in told)


def test_the_newest_lobe_can_be_named(sound: MultiLobeModel) -> None:
    assert forgetting_check(sound, newest=FIRST.lower(), contrast=False, **QUICK).newest == FIRST
    with pytest.raises(LobeError, match=r"no lobe called 'Plants' on this base. There are: Animals, Numbers v1.0"):
        forgetting_check(sound, newest="Plants")
    with pytest.raises(ConfigError, match=r"second is 'animals': it must be another lobe"):
        forgetting_check(sound, first="Animals", second="animals")


@pytest.mark.parametrize(("name", "value"), [("rows", 3), ("epochs", 0), ("probes", 0), ("held_out", 0), ("newest", None)])
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        ForgettingSettings(**{name: value})


# ---- few lobes, or none ----------------------------------------------------------------------------------------------------


def test_without_lobes_the_base_is_checked(own: Callable[..., MultiLobeModel]) -> None:
    report = forgetting_check(own(lobes=False), **QUICK)
    assert report.passed and report.lobes == [] and report.newest is None and report.contrast is None
    assert report.trained["steps"] > 0 and report.trained["rows"] == 32  # an adapter was trained all the same, on prompts
    assert "no lobe has" in report.contrast_why


def test_one_lobe_has_no_contrast(own: Callable[..., MultiLobeModel]) -> None:
    model = own(lobes=False)
    model.add_lobe(FIRST, rows(FIRST), epochs=1, lora_r=2, learning_rate=1e-2, batch_size=8, validation_fraction=0.1)
    report = forgetting_check(model, **QUICK)
    assert report.passed and report.newest == FIRST and report.contrast is None
    assert report.contrast_why.startswith("The contrast needs two lobes that have kept rows with answers, and only Animals has.")


def test_lobes_without_rows_are_checked_but_not_trained(
    own: Callable[..., MultiLobeModel], adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = own(lobes=False)
    for name in ("plain", "attention"):
        model.import_adapter(name, shutil.copytree(adapters[name], tmp_path / name))
    report = forgetting_check(model, **QUICK)
    assert report.passed and [lobe.same for lobe in report.lobes] == [True, True] and report.newest is None
    with pytest.raises(DataError, match="plain has kept no rows with answers"):
        forgetting_check(model, newest="plain")


def test_losses_are_of_trained_rows_where_none_are_held_out(own: Callable[..., MultiLobeModel]) -> None:
    """A fact that is not trained is not learned, so rows taken away from the adapter would say nothing."""
    model = own(lobes=False)
    for name in (FIRST, SECOND):
        model.add_lobe(
            name, rows(name), epochs=1, lora_r=2, learning_rate=1e-2, batch_size=8, validation_fraction=0.0
        )
    report = forgetting_check(model, **QUICK)
    assert report.passed and report.contrast is not None and report.contrast.held_out == (3, 3)
    assert report.contrast.trained == [FIRST, SECOND] and report.contrast.rows == (8, 8)
    assert report.trained["held_out"] == 0 and report.trained["loss_after"] < report.trained["loss_before"]


def test_the_base_is_the_same_whatever_the_architecture(base_folder: Callable[..., Path]) -> None:
    for architecture in ("llama-tied", "gpt2", "bloom"):
        model = MultiLobeModel(Backbone.from_pretrained(base_folder(architecture), device="cpu"), embedder=WordEmbedder())
        assert forgetting_check(model, **QUICK).passed, architecture


# ---- stopped ---------------------------------------------------------------------------------------------------------------


def test_stopped_before_it_began_it_proves_nothing(sound: MultiLobeModel) -> None:
    stop = threading.Event()
    stop.set()
    report = forgetting_check(sound, stop=stop, **QUICK)
    assert not report.passed and report.stopped and report.trained["steps"] == 0
    assert report.reasons == ["It was stopped before anything was trained, so nothing is proven. Run it again."]


@pytest.mark.parametrize(("phase", "contrast"), [("Training", False), ("One adapter", False), ("The same", True)])
def test_stopped_on_the_way_it_says_what_there_is(sound: MultiLobeModel, phase: str, contrast: bool) -> None:
    stop = threading.Event()

    def progress(record: Progress) -> None:
        if record.phase.startswith(phase) and "loss" in record.values:
            stop.set()

    report = forgetting_check(sound, progress=progress, stop=stop, **QUICK)
    assert report.passed and report.stopped and report.base.same and report.trained["steps"] > 0
    assert (report.contrast is not None) == contrast and (report.contrast_why == "") == contrast


# ---- tampering -------------------------------------------------------------------------------------------------------------


def test_a_weight_changed_while_a_lobe_was_trained_is_found(
    own: Callable[..., MultiLobeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own()
    name = "model.layers.1.mlp.down_proj.weight"
    hostile(monkeypatch, lambda: flip(model.backbone.model.get_parameter(name), 5))
    report = forgetting_check(model, **QUICK)
    assert not report.passed and not report.base.same and not report.base.logits_same
    assert report.base.max_difference > 0 and report.base.mean_kl > 0  # type: ignore[operator]
    assert any("weights changed while lobes were trained" in r and name in r and "Restart" in r for r in report.reasons)
    assert [lobe.same for lobe in report.lobes] == [False] * 3 and all(lobe.files_same for lobe in report.lobes)


def test_one_bit_that_no_probe_feels_is_found(own: Callable[..., MultiLobeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = own()
    embedding = model.backbone.model.get_input_embeddings().weight
    hostile(monkeypatch, lambda: flip(embedding, 6 * 32 + 1, bit=0))  # the last bit of <|eot|>, which nobody writes
    report = forgetting_check(model, contrast=False, **QUICK)
    base = report.base
    assert not report.passed and not base.same and base.logits_same and base.source_same is False
    assert "model.embed_tokens.weight" in report.reasons[0] and base.hash_before[:12] in report.reasons[0]


@pytest.mark.parametrize(("place", "sampled"), [(0, True), (33, False)])
def test_a_weight_changed_since_the_lobes_were_trained_is_found(
    own: Callable[..., MultiLobeModel], place: int, sampled: bool
) -> None:
    model = own()
    flip(model.backbone.model.get_input_embeddings().weight, place)
    report = forgetting_check(model, contrast=False, **QUICK)
    assert not report.passed and report.base.same and report.base.logits_same  # nothing changed during the check
    assert report.base.source_same is False
    assert any("not the one in its folder: model.embed_tokens.weight differs" in reason for reason in report.reasons)
    assert [lobe.fingerprint_same for lobe in report.lobes] == [not sampled] * 3
    assert any(f"that {', '.join(TOPICS)} was trained on" in reason for reason in report.reasons) == sampled


def test_a_base_changed_on_disk_is_found(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    base = shutil.copytree(base_folder(), tmp_path / "base")
    trained(Backbone.from_pretrained(base, device="cpu"), tmp_path / "home")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    changed = MultiLobeModel(Backbone.from_pretrained(base, device="cpu"), home=tmp_path / "home", embedder=WordEmbedder())
    report = forgetting_check(changed, **QUICK)
    assert not report.passed and report.base.same and report.base.source_same
    assert [(lobe.name, lobe.same, lobe.fingerprint_same) for lobe in report.lobes] == [(n, None, False) for n in TOPICS]
    assert "Animals, Numbers v1.0, 色 / colours was trained on" in report.reasons[0]


def test_a_lobe_of_another_base_is_no_concern(sound: MultiLobeModel, base_folder: Callable[..., Path], tmp_path: Path) -> None:
    other = Backbone.from_pretrained(base_folder("gpt2"), device="cpu")
    home = shutil.copytree(sound.home, tmp_path / "home")
    report = forgetting_check(MultiLobeModel(other, home=home, embedder=WordEmbedder()), **QUICK)
    assert report.passed and report.lobes == []


def test_a_damaged_lobe_is_named(own: Callable[..., MultiLobeModel], base_folder: Callable[..., Path]) -> None:
    model = own()
    (model.lobes.named(SECOND).path / "adapter_model.safetensors").write_bytes(b"broken")
    again = MultiLobeModel(Backbone.from_pretrained(base_folder(), device="cpu"), home=model.home, embedder=WordEmbedder())
    report = forgetting_check(again, contrast=False, **QUICK)
    assert [(lobe.name, lobe.same, lobe.files_same) for lobe in report.lobes] == [
        (FIRST, True, True), (THIRD, True, True), (SECOND, None, False),
    ]  # fmt: skip
    assert not report.passed and report.reasons[0].startswith(f"{SECOND} cannot be run: lobe_0002: adapter_model.safetensors")


def change_file(model: MultiLobeModel, name: str) -> None:
    path = model.lobes.named(name).path / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def test_adapter_files_changed_during_the_check_are_named(
    own: Callable[..., MultiLobeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own()
    hostile(monkeypatch, lambda: change_file(model, SECOND))
    report = forgetting_check(model, contrast=False, **QUICK)
    assert not report.passed and report.base.same
    assert [lobe.files_same for lobe in report.lobes] == [True, False, True]
    assert [lobe.same for lobe in report.lobes] == [True] * 3  # what runs is still in memory
    assert report.reasons == [
        f"The adapter files of {SECOND} changed during the check. Load it from a bundle, or train it again."
    ]


def test_adapter_files_changed_before_the_check_are_named(own: Callable[..., MultiLobeModel]) -> None:
    model = own()
    model.generate("cat", lobe=FIRST, max_new_tokens=2)  # now it is in memory
    change_file(model, FIRST)
    report = forgetting_check(model, contrast=False, **QUICK)
    assert not report.passed and [lobe.files_same for lobe in report.lobes] == [False, True, True]
    assert "The adapter files of Animals are not what it runs" in report.reasons[0]


def test_files_that_are_gone_are_named_without_a_path(own: Callable[..., MultiLobeModel]) -> None:
    model = own()
    (model.lobes.named(FIRST).path / "adapter_model.safetensors").unlink()
    report = forgetting_check(model, newest=SECOND, contrast=False, **QUICK)
    assert (report.lobes[0].same, report.lobes[0].files_same) == (None, False) and str(model.home) not in str(report.reasons)
    assert report.reasons[0].startswith("Animals cannot be run: its adapter files cannot be read (No such file or directory).")


def test_a_lobe_changed_in_memory_is_named(own: Callable[..., MultiLobeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = own()
    lobe = model.lobes.named(THIRD).id

    def change() -> None:
        a, _ = next(iter(model.bank.memory.matrices(lobe).values()))
        a.mul_(1.01)

    hostile(monkeypatch, change)
    report = forgetting_check(model, contrast=False, **QUICK)
    assert not report.passed and [found.same for found in report.lobes] == [True, True, False]
    assert report.lobes[2].max_difference > 0 and any(f"Other logits than before from {THIRD}" in r for r in report.reasons)  # type: ignore[operator]


def test_a_lobe_deleted_meanwhile_is_looked_at_no_more(
    own: Callable[..., MultiLobeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own()
    hostile(monkeypatch, lambda: model.remove_lobe(FIRST))
    report = forgetting_check(model, contrast=False, **QUICK)
    assert report.passed and [lobe.name for lobe in report.lobes] == [SECOND, THIRD]


# ---- to the last bit -------------------------------------------------------------------------------------------------------


def test_every_bit_of_every_tensor_counts(own: Callable[..., MultiLobeModel], tmp_path: Path) -> None:
    bank = own(lobes=False).bank
    random = np.random.default_rng(0)

    def shot() -> Any:
        return finish(taking(bank, [], [[5, 6, 7]], tmp_path / "shot"))

    before, names = shot(), []
    for name, tensor in tensors_of(bank):
        place, bit = int(random.integers(tensor.numel())), int(random.integers(32))
        flip(tensor, place, bit)
        after = shot()
        assert before.changed_weights(after) == [name] and after.base != before.base
        flip(tensor, place, bit)
        names.append(name)
    assert shot().base == before.base and any("inv_freq" in name for name in names)  # buffers, too
    bank.model.lm_head.weight = torch.nn.Parameter(bank.model.lm_head.weight.detach().clone())  # the copy that answers
    assert before.changed_weights(shot()) == ["served: lm_head.weight"]


def test_the_size_of_a_difference_is_that_of_scipy() -> None:
    random = np.random.default_rng(1)
    before = random.normal(size=(6, 40)).astype(np.float32)
    after = before + random.normal(scale=0.1, size=before.shape).astype(np.float32)
    found = difference(before, after)
    p, q = softmax(before.astype(float), -1), softmax(after.astype(float), -1)
    assert found.mean_kl == pytest.approx(rel_entr(p, q).sum(-1).mean(), rel=1e-9) and not found.same
    assert found.max_difference == np.abs(before.astype(float) - after).max()
    assert np.allclose(log_softmax(before, -1), np.log(p), atol=1e-5)
    bit = before.copy()
    bit.view(np.int32)[3, 7] ^= 1
    assert not difference(before, bit).same and 0 < difference(before, bit).max_difference < 1e-6  # type: ignore[operator]
    assert difference(before, before.copy()).same
    assert not difference(np.zeros((1, 2), np.float32), np.array([[0.0, -0.0]], np.float32)).same
    bit[0, 0] = np.nan
    assert difference(before, bit).max_difference is None and difference(before, before[:2]).max_difference is None


# ---- the contrast ----------------------------------------------------------------------------------------------------------


def with_peft(backbone: Backbone, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder)).eval()


def test_the_contrast_is_what_plain_peft_measures(sound: MultiLobeModel, tmp_path: Path) -> None:
    config = TrainingConfig(epochs=4, batch_size=4, learning_rate=0.02, evaluations_per_epoch=1, lora_r=4)
    domains = [_domain(sound, name) for name in (FIRST, SECOND)]
    drift = Drift(sound.bank, *domains, config, tmp_path)
    before = drift.lobe_losses()
    finish(drift.learn_first())
    finish(drift.learn_second())
    found = drift.contrast()
    backbone = sound.backbone
    models = {
        "base": backbone.model, "after_first": with_peft(backbone, tmp_path / "first"),
        "after_second": with_peft(backbone, tmp_path / "second"),
    }  # fmt: skip
    for own, domain, mine in zip(("first", "second"), domains, before, strict=True):
        lobe = with_peft(backbone, sound.lobes.named(domain.name).path)
        for stage, model in {**models, "lobe": lobe}.items():
            expected = loss_of(model, backbone, domain.held_out)
            assert found.losses[own][stage] == pytest.approx(expected, abs=1e-4), (own, stage)
        assert mine == found.losses[own]["lobe"]  # the lobes were untouched, to the last bit
    a = found.losses["first"]
    assert found.forgotten == a["after_second"] - a["after_first"] and a["after_first"] < a["base"]
    assert found.kept == pytest.approx((a["base"] - a["after_second"]) / (a["base"] - a["after_first"]))
    assert found.losses["second"]["after_second"] < found.losses["second"]["after_first"]
    points = [point["step"] for point in found.curve]
    assert points == sorted(set(points)) and points[0] == 0 and found.switch in points
    at = {point["step"]: (point["first"], point["second"]) for point in found.curve}
    assert at[0] == pytest.approx([found.losses[own]["base"] for own in ("first", "second")], abs=1e-4)
    assert at[found.switch] == pytest.approx([found.losses[own]["after_first"] for own in ("first", "second")], abs=1e-4)
    assert min(second for step, (_, second) in at.items() if step > found.switch) == pytest.approx(
        found.losses["second"]["after_second"], abs=1e-4
    )


def _domain(model: MultiLobeModel, name: str) -> Any:
    from multilobe_ui.evaluation.forgetting.drift import Domain
    from multilobe_ui.evaluation.forgetting.measure import _example

    lobe = model.lobes.named(name)
    kept = lobe.routing_rows()
    assert kept is not None
    train, held_out = (
        [_example(p, a) for p, a in zip(prompts, answers, strict=True)]
        for prompts, answers in ((kept.train_prompts, kept.train_answers), (kept.validation_prompts, kept.validation_answers))
    )
    return Domain(name, lobe.id, train, held_out)


def test_the_pair_is_the_one_that_is_farthest_apart(report: ForgettingReport, sound: MultiLobeModel) -> None:
    random = np.random.default_rng(3)
    for _ in range(5):
        none = np.zeros((0, 8), np.float32)
        lobes = {str(i): RoutingRows(random.normal(size=(3, 8)).astype(np.float32), none, none) for i in range(6)}
        cosines = cosine_similarity([own.prototypes.mean(0) for own in lobes.values()])
        one, other = farthest(lobes)
        assert cosines[int(one), int(other)] == pytest.approx(cosines.min(), abs=1e-6)
        assert farthest(lobes, ["4"]) == ("4", str(np.argmin(cosines[4])))
        assert farthest(lobes, ["5", "1"]) == ("5", "1")
    assert report.contrast is not None and report.contrast.first != report.contrast.second
    named = forgetting_check(sound, second=FIRST, **QUICK).contrast
    assert named is not None and named.second == FIRST
    named = forgetting_check(sound, first=THIRD, second=FIRST, **QUICK).contrast
    assert named is not None and (named.first, named.second, named.rows) == (THIRD, FIRST, (8, 8))


# ---- as a job, and for real ------------------------------------------------------------------------------------------------


def test_it_runs_as_a_job_of_the_studio(make_studio: Callable[..., Any]) -> None:  # noqa: F811
    studio = make_studio()
    studio.loading.model.add_lobe(FIRST, rows(FIRST), epochs=1, lora_r=2, learning_rate=1e-2, batch_size=8, validation_fraction=0.1)
    job = studio.desk().lab.start("forgetting", {**QUICK, "newest": FIRST})
    wait_for(lambda: studio.desk().job(job.id).state == "finished")
    found = studio.lab.result(job.id)
    assert found["passed"] and found["newest"] == FIRST and found["lobes"][0]["same"]
    assert not (studio.home / "jobs" / job.id / "made").exists()
    with pytest.raises(ConfigError, match="epochs is 0"):
        studio.desk().lab.start("forgetting", {"epochs": 0})


@pytest.mark.builtin
def test_the_built_in_model_passes_and_one_adapter_forgets(builtin: Backbone, tmp_path: Path) -> None:
    model = MultiLobeModel(builtin, home=tmp_path / "home", embedder=WordEmbedder())
    model.load_bundle(demo_bundle())
    report = forgetting_check(
        model, newest="sentiment", first="maths", second="sentiment", rows=24, held_out=6, epochs=4, probes=4
    )
    assert report.passed and len(report.lobes) == 6 and all(lobe.same and lobe.files_same for lobe in report.lobes)
    assert report.contrast is not None
    maths = report.contrast.losses["first"]
    assert report.contrast.forgotten > 0.3 and maths["after_first"] < maths["base"] - 0.3
    assert maths["lobe"] < maths["after_first"]


def test_a_base_that_is_in_no_folder_is_no_failure(own: Callable[..., MultiLobeModel]) -> None:
    model = own(lobes=False)
    model.backbone.name = "somebody/some-model"
    report = forgetting_check(model, **QUICK)
    assert report.passed and report.base.source_same is None

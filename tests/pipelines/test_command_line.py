from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

COMMANDS = {
    "bench": ["--json", "--quiet", "--repeats", "--threads", "--tile-batch", "--verbose"],
    "check": ["--allow", "--json", "--out", "--quiet", "--task", "--verbose", "--workers"],
    "convert": ["--json", "--out", "--quiet", "--to", "--verbose"],
    "demo": ["--budget", "--json", "--out", "--quiet", "--verbose"],
    "doctor": ["--json", "--verbose"],
    "evaluate": [
        "--compare", "--json", "--labels", "--out", "--quiet", "--split", "--surface", "--task", "--verbose",
    ],
    "import nnunet": ["--fold", "--json", "--out", "--quiet", "--verbose"],
    "init": ["--out", "--verbose"],
    "plan": [
        "--budget", "--device", "--explain", "--explain-memory", "--json", "--memory", "--out", "--quiet", "--set", "--verbose",
    ],
    "predict": [
        "--allow", "--device", "--json", "--one-file-each", "--out", "--overlap", "--overwrite", "--preview", "--probabilities", "--quiet",
        "--runtime", "--skip-air", "--split", "--structures", "--threads", "--tile-batch", "--tta", "--verbose",
    ],
    "tasks": ["--json", "--verbose"],
    "train": [
        "--budget", "--data", "--deterministic", "--dry-run", "--fold", "--from", "--json", "--memory", "--out", "--plan",
        "--quiet", "--resume", "--set", "--verbose",
    ],
}  # fmt: skip


def test_commands_and_options_are_those_delivered() -> None:
    """The contract, frozen: a name may be added when it is delivered, and none may go."""
    import typer

    from pipelines.cli import app

    found = {
        name: sorted(
            option
            for param in command.params
            for option in param.opts
            if option.startswith("--") and option != "--help"
        )
        for name, command in commands_of(typer.main.get_command(app))
    }
    assert found == COMMANDS


def commands_of(group, before: str = ""):
    """Names and commands, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{before}{name} ")
        else:
            yield before + name, command


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"]])
def test_light_commands_take_little_time_and_no_torch(arguments: list[str]) -> None:
    script = f"import sys; from pipelines.cli import app; sys.argv = ['medseg', *{arguments}]\ntry: app()\nexcept SystemExit: print('torch' in sys.modules, 'monai' in sys.modules)"
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.endswith("False False\n"), done.stdout
    assert statistics.median(seconds) <= 0.7


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_has_an_example(command: str, medseg) -> None:
    answer = medseg(*command.split(), "--help")
    assert answer.exit_code == 0
    assert f"Example: medseg {command}" in answer.stdout


def test_version(medseg) -> None:
    from medseg.core.version import VERSION

    assert medseg("--version").stdout == f"medseg {VERSION}\n"


def test_tasks(medseg, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = medseg("tasks", "--json").json["tasks"]
    assert (task["name"], task["package"], task["status"]) == ("ct_segmentation", "medseg", "available")
    monkeypatch.setenv("MEDSEG_DISABLE_PLUGINS", "ct_segmentation")
    assert medseg("tasks", "--json").json["tasks"] == []


def test_with_json_a_refusal_is_one_object_too(tmp_path: Path, sample: Path, smoke: Path, medseg) -> None:
    nothing = tmp_path / "nothing"
    for arguments, code in (
        (("check", nothing), 2),
        (("train", smoke, "--data", nothing), 2),
        (("predict", nothing, sample, "--out", tmp_path / "out"), 4),
        (("evaluate", nothing, sample, "--task", "none"), 3),
    ):
        answer = medseg(*arguments, "--json")
        assert answer.exit_code == code
        assert set(answer.json["error"]) == {"code", "message"}
        assert answer.stderr == f"error: {answer.json['error']['message']}\n"
        assert medseg(*arguments).stdout == ""


def test_an_out_that_is_no_folder_is_a_mistake_in_the_command(
    tmp_path: Path, sample: Path, smoke: Path, medseg
) -> None:
    """Not exit 1, which says that some cases failed and the others are done."""
    file = tmp_path / "file"
    file.write_text("mine")
    for command in (
        ("convert", sample, "--to", "nnunet"), ("train", smoke, "--data", sample),
        ("evaluate", sample / "labels", sample),
    ):  # fmt: skip
        answer = medseg(*command, "--out", file)
        assert answer.exit_code == 2
        assert "give another --out" in answer.stderr
    assert file.read_text() == "mine"


def test_a_run_that_cannot_start_leaves_no_folder_in_the_way(tmp_path: Path, sample: Path, smoke: Path, medseg) -> None:
    out = tmp_path / "run"
    for mistake in (("--plan", tmp_path / "none.json"), ("--set", "trainer.device=cuda:99")):
        assert medseg("train", smoke, "--data", sample, "--out", out, *mistake).exit_code == 2
        assert not out.exists()


def test_what_is_no_description_is_named(tmp_path: Path, medseg) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08")
    answer = medseg("check", path)
    assert answer.exit_code == 2
    assert "expected JSON in scan.nii.gz" in answer.stderr


def test_doctor(medseg) -> None:
    answer = medseg("doctor", "--json")
    assert all(answer.json["packages"].values())
    assert answer.json["cpu"]["cores"] >= 1
    assert "CUDA" in medseg("doctor").stdout


def test_init_writes_a_complete_config_that_trains(tmp_path: Path, sample: Path, medseg) -> None:
    from medseg.tasks.ct_segmentation.config import CtSegmentationConfig

    path = tmp_path / "mine.yaml"
    assert medseg("init", "ct_segmentation", "--out", path).exit_code == 0
    assert CtSegmentationConfig.model_validate(yaml.safe_load(path.read_text())) == CtSegmentationConfig()
    assert medseg("init", "ct_segmentation").stdout.strip() == path.read_text().strip()
    assert medseg("init", "ct_segmentation", "--out", path).exit_code == 2, "nothing is overwritten"
    dry = medseg("train", path, "--data", sample, "--dry-run", "--out", tmp_path / "run", "--json")
    assert dry.exit_code == 0
    assert dry.json["config"]["network"]["kind"] == "unet"
    assert not (tmp_path / "run").exists()


WARNINGS = {
    "lung_nodule_vnet": (
        "# Lung nodules on chest CT: LUNA16 (its annotations as label maps) or Medical Segmentation Decathlon Task06.\n"
        "# Its accuracy is not verified: no such data were at hand. That it is complete and trains was tested on synthetic scans.\n\n"
    )
}
"""What stands above a config that nobody could try on real data."""


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "ct_segmentation").glob("*.yaml")), ids=lambda p: p.stem
)
def test_configs_are_complete_commented_and_valid(path: Path) -> None:
    """Each is what ``medseg init`` would write for its values, so that no comment is out of date."""
    from medseg.io.starter import commented_yaml
    from medseg.tasks.ct_segmentation.config import CtSegmentationConfig

    config = CtSegmentationConfig.model_validate(yaml.safe_load(path.read_text()))
    assert path.read_text() == WARNINGS.get(path.stem, "") + commented_yaml(config)
    assert config.name == path.stem


def test_plan_says_why_and_train_takes_it(tmp_path: Path, sample: Path, smoke: Path, medseg) -> None:
    path = tmp_path / "plan.json"
    answer = medseg(
        "plan",
        sample,
        "--out",
        path,
        "--json",
        "--set",
        "plan.spacing_mm=[9, 9, 9]",
        "--set",
        "plan.patch_ijk=[32, 16, 32]",
    )
    assert answer.exit_code == 0
    plan = json.loads(path.read_text())
    assert answer.json == plan
    assert plan["spacing_ijk_mm"] == [9, 9, 9]
    assert any("percentile inside the structures" in reason for reason in plan["reasons"])
    plan["strides"], plan["num_steps"] = [[2, 2, 2], [2, 2, 2]], 3
    path.write_text(json.dumps(plan))
    trained = medseg("train", smoke, "--data", sample, "--plan", path, "--out", tmp_path / "run", "--json")
    assert trained.exit_code == 0, trained.stderr
    assert trained.json["num_steps"] == 3
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["spacing_ijk_mm"] == [9, 9, 9]


def test_plan_with_a_budget_freezes_the_steps(sample: Path, medseg) -> None:
    small = [
        "--set",
        "plan.spacing_mm=[9, 9, 9]",
        "--set",
        "plan.patch_ijk=[32, 16, 32]",
        "--set",
        "network.features=[4, 8]",
    ]
    answer = medseg("plan", sample, "--budget", "10m", "--device", "cpu", "--json", *small)
    assert answer.exit_code == 0, answer.stderr
    assert answer.json["num_steps"] > 10
    assert medseg("plan", sample, "--budget", "60s", "--device", "abacus", *small).exit_code == 2


def test_a_plan_for_a_gpu_that_is_not_here_needs_no_measurement(tmp_path: Path, sample: Path, medseg) -> None:
    path = tmp_path / "plan.json"
    answer = medseg(
        "plan", sample, "--device", "gpu-8g", "--budget", "24h", "--explain", "--explain-memory", "--out", path
    )
    assert answer.exit_code == 0, answer.stderr
    plan = json.loads(path.read_text())
    assert plan["precision"] == "fp16"
    assert plan["num_steps"] > 1000
    assert plan["candidates"][0]["patch_ijk"] == plan["patch_ijk"]
    assert sum(plan["memory_bytes"].values()) < 8 * 2**30
    assert plan["fingerprint"]["left_right"] == [["parotid_right", "parotid_left"]]
    assert "planned for 24 h and 8.0 GB of memory on gpu-8g" in answer.stdout
    assert "weights, gradients, optimiser, average" in answer.stdout
    smaller = medseg("plan", sample, "--device", "gpu-8g", "--memory", "2G", "--json").json
    assert sum(smaller["memory_bytes"].values()) <= 2 * 2**30
    too_small = medseg("plan", sample, "--device", "gpu-8g", "--memory", "512M", "--json")
    assert (too_small.exit_code, too_small.json["error"]["code"]) == (7, "resource.memory")
    assert medseg("plan", sample, "--device", "gpu-9g").exit_code == 2
    assert medseg("plan", sample, "--memory", "much").exit_code == 2


def test_quiet_hides_progress_and_verbose_shows_the_traceback(
    tmp_path: Path, sample: Path, smoke: Path, medseg
) -> None:
    wrong = ["train", smoke, "--data", tmp_path / "nowhere"]
    assert "Traceback" in medseg(*wrong, "--verbose").stderr
    assert "Traceback" not in medseg(*wrong).stderr
    from medseg.core.progress import Progress
    from pipelines import progress

    lines = []
    for quiet in (False, True):
        display = progress.ProgressDisplay(quiet)
        display.console.print = lambda *text, **_: lines.append(text[0])  # type: ignore[method-assign]
        display(Progress("training", 0, 4))
        display._told -= 100
        display(Progress("training", 2, 4, {"loss": 0.5}))
        display(Progress("training", 3, 4, message="a word"))
    assert [line for line in lines if "training 2/4 loss 0.500" in line] == lines[:1]
    assert lines.count("a word") == 2

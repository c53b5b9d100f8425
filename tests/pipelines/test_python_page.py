"""``docs/python.md`` does what it says, block after block, with the budget cut to seconds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import medseg
import pipelines

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_blocks_run_one_after_the_other(tmp_path: Path, sample: Path, smoke: Path) -> None:
    shutil.copytree(sample, tmp_path / "my_dataset")
    shutil.copy(sample / "images" / "pt_222.nii.gz", tmp_path / "scan.nii.gz")
    shutil.copy(smoke, tmp_path / "config.yaml")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    script = "\n".join(blocks).replace("20m", "20s")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "read.crc" in done.stdout
    assert "did you mean 'length'" in done.stdout
    for name in ("predictions/scan.nii.gz", "evaluation/metrics.json", "evaluation/report.html"):
        assert (tmp_path / name).is_file()


def test_the_public_names_are_there_and_documented() -> None:
    for name in medseg.__all__:
        thing = getattr(medseg, name)
        assert name == "__version__" or thing.__doc__
    assert dir(medseg) == sorted(medseg.__all__)
    for package in (medseg, pipelines):  # Outcome lives in pipelines: without it, type checkers would take it for Any
        assert Path(str(package.__file__)).with_name("py.typed").exists()

"""What all tests share: shapes are checked, one thread, reproducible properties, and the sample of real scans.

Every function and dataclass of medseg is checked by beartype against its annotations while the tests run. Two things it
cannot do: a protocol in an annotation has to be ``runtime_checkable``; and a name that is imported only under
``TYPE_CHECKING`` (which keeps a torch-free module torch-free) fails where a function that uses it is called, so such a
function is marked ``typing.no_type_check``. A dataclass with such a name is not checked.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their threads

os.environ["MEDSEG_RUNTIME"] = "torch"  # which runtime is fastest may change while the tests run, and a voxel with it

from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

install_import_hook("medseg", "beartype.beartype")

# The same examples every time; look for new ones with `pytest --hypothesis-profile=explore`.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared cases of the tests are kept apart from the user's, those of commands that they run included."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MEDSEG_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the larger real data sets, which are not part of the repository; tests that need them skip without.

    ``MEDSEG_TEST_DATA`` names it; else it lies beside the checkout, in ``shared/data``.
    """
    folder = Path(os.environ.get("MEDSEG_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("the larger data sets are not on this machine: MEDSEG_TEST_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def sample() -> Path:
    """Folder of the sample dataset: eight real head-and-neck CTs, six for training and two for validation."""
    return Path(__file__).parents[1] / "medseg" / "resources" / "sample"

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import ConfigError
from medseg.core.units import size_bytes, size_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512M", 512 * 2**20),
        ("4G", 2**32),
        ("1.5g", 3 * 2**29),
        ("2GiB", 2**31),
        ("8 GB", 2**33),
        ("1T", 2**40),
        ("100", 100),
    ],
)
def test_sizes_are_binary_in_whatever_way_they_are_written(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "4 giga", "1e9", "4GG", "NaN"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="512M or 4G"):
        size_bytes(text)


@given(st.integers(2**20, 2**45))
def test_a_size_that_is_told_can_be_typed(num_bytes: int) -> None:
    assert abs(size_bytes(size_text(num_bytes)) - num_bytes) <= max(2**20, 0.051 * 2**30)

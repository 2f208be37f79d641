"""Where SeaweedFS, as one of the kinds of bucket, differs from the contract."""

import pytest

BY_SEGMENT = "SeaweedFS lists by path segment, and not by the bytes of whole keys"

DIFFERENCES = {
    "test_a_listing_is_ordered_by_the_keys_bytes[seaweedfs]": BY_SEGMENT,
    "test_a_prefix_selects_keys[seaweedfs--expected0]": BY_SEGMENT,
    "test_a_prefix_selects_keys[seaweedfs-one-expected1]": BY_SEGMENT,
    r"test_odd_keys_work_everywhere[seaweedfs-'<b>&amp;`$()!*~@:,|\\\\']": "SeaweedFS takes a backslash for a slash",
}
"""The tests that must fail with it, and why; test_seaweedfs.py asserts what it does instead."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect these tests to fail."""
    for item in items:
        if reason := DIFFERENCES.get(item.name):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=(AssertionError, ValueError)))

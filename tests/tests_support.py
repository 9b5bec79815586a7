"""What several tests need that is not a fixture."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
USER_FILES = ("examples", "profiles", "tests", "docs")


def copy_user_files(folder: Path) -> None:
    """Make `folder` look like the repository's root to a command that reads files from there."""
    for name in USER_FILES:
        (folder / name).symlink_to(REPO / name)

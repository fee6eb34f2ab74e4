"""The workflows, and what they rely on: valid files, pinned actions, notes for a release from one version."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import modula_rs
import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_workflows_are_valid():
    done = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_workflows_are_safe():
    done = run(str(Path(sys.executable).parent / "zizmor"), "--offline", "--no-progress", "--min-severity", "medium", ".github")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_hash(path):
    used = re.findall(r"uses: (\S+)", path.read_text())
    loose = [name for name in used if not name.startswith("./") and not re.search(r"@[0-9a-f]{40}$", name)]
    assert used
    assert not loose


def test_one_version():
    assert modula_rs.__version__ == tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def notes(root, tag):
    return run(
        sys.executable,
        "-c",
        f"import sys, pathlib; sys.path.insert(0, 'ci'); import release_notes as r; print(r.notes({tag!r}, pathlib.Path({str(root)!r})))",
    )


def test_release_notes_are_the_section_of_the_version(tmp_path):
    (tmp_path / "Cargo.toml").write_text('[workspace.package]\nversion = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2026-12-01\n\n### Added\n\n- this\n\n## 0.1.0\n\n- that\n"
    )
    done = notes(tmp_path, "v0.2.0")
    assert done.stdout == "### Added\n\n- this\n"


@pytest.mark.parametrize(
    ("tag", "reason"), [("v0.3.0", "the tag is v0.3.0, but Cargo.toml has version 0.2.0"), ("v0.2.0", "CHANGELOG.md has no section 0.2.0")]
)
def test_a_release_that_does_not_agree_is_refused(tmp_path, tag, reason):
    (tmp_path / "Cargo.toml").write_text('[workspace.package]\nversion = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- this\n")
    done = notes(tmp_path, tag)
    assert done.returncode == 1
    assert reason in done.stderr

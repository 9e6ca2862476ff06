"""The programs that read the files of containers where no engine runs."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.service import ROOT

WITHOUT = {"prometheus": "FORCEGATE_TEST_WITHOUT_PROMETHEUS", "promtool": "FORCEGATE_TEST_WITHOUT_PROMETHEUS"}
OTHERS = "FORCEGATE_TEST_WITHOUT_DEPLOY_TOOLS"


def tool(name: str) -> str:
    """The path of a program: of environments/deploy, which tests/run makes, or of this machine."""
    folder = ROOT / "environments" / "deploy" / "bin"
    if (found := shutil.which(name, path=f"{folder}{os.pathsep}{os.environ['PATH']}")) is not None:
        return found
    variable = WITHOUT.get(name, OTHERS)
    if os.environ.get(variable):
        pytest.skip(f"{variable} is set, and there is no {name}: WHAT IT CHECKS IS NOT CHECKED")
    pytest.fail(f"There is no {name} here. tests/run installs it; or set {variable}=1 to do without.")


def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs one of them in the folder of the repository."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FORCEGATE_")} | variables
    return subprocess.run([tool(name), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)

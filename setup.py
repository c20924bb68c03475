"""Package definition: everything it says comes from settings.ini."""
from configparser import ConfigParser
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key):
    "The entries of a multi-line setting, without blank lines."
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]


def shared(folder, *patterns):
    "Files that an installed copy finds under `share/verifier_nb`, because the runner reads them as files."
    files = sorted(f for pattern in patterns for f in glob(f"{folder}/{pattern}") if Path(f).is_file())
    return (f"share/verifier_nb/{folder}", files)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    packages=find_packages(include=["verifier_nb", "verifier_nb.*"]),
    package_data={"verifier_nb": ["words/*", "templates/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={name: lines(f"{name}_requirements") for name in ("dev", "data", "flash", "demo", "track")},
    entry_points={"console_scripts": [cfg["console_scripts"]]},
    data_files=[shared("configs", "*.yaml"), shared("nbs", "*.ipynb"), shared("models/default", "*")],
    zip_safe=False,
)

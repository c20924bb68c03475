"""Package definition: everything it says comes from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key):
    "The entries of a multi-line setting, without blank lines."
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]


# Folders beside the library that an installed copy finds within it, by `verifier_nb.setup.find_shared`.
SHARED = {"configs": ["*.yaml"], "nbs": ["*.ipynb"], "models": ["default/*"]}
EXTRAS = [key.removesuffix("_requirements") for key in cfg if key.endswith("_requirements")]


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
    packages=find_packages(include=["verifier_nb", "verifier_nb.*"]) + [f"verifier_nb.{folder}" for folder in SHARED],
    package_dir={f"verifier_nb.{folder}": folder for folder in SHARED},
    package_data={"verifier_nb": ["words/*", "templates/*"],
                  **{f"verifier_nb.{folder}": names for folder, names in SHARED.items()}},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={name: lines(f"{name}_requirements") for name in EXTRAS},
    entry_points={"console_scripts": [cfg["console_scripts"]]},
    zip_safe=False,
)

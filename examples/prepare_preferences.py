"""Run `datasets/prepare_preferences.py`, which says what it does and how."""

import runpy
import sys
from pathlib import Path


FOLDER = Path(__file__).resolve().parent / "datasets"

if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))  # the modules beside the script
    runpy.run_path(str(FOLDER / "prepare_preferences.py"), run_name="__main__")

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "journal"))  # the made journals
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

"""Search a task's hyperparameters; val selects, and test is scored once.

    python sweeps/hyperparameters.py --task tasks/fingerprint.py --preset designs --trials 20
    python sweeps/hyperparameters.py --space optim.lr=1e-4..1e-2,log model.k=2|4|8
    python sweeps/hyperparameters.py --space-file sweep.yaml        # also one of W&B

Begun again with more trials, the study goes on; `optuna-dashboard` opens its optuna.log.
"""

from pathlib import Path

from assay.sweep.search import SearchLaunch, main

TASK = Path(__file__).parents[1] / "tasks" / "fingerprint.py"

if __name__ == "__main__":
    main(SearchLaunch(task=TASK))

"""Which setting is better, on how much data, and what does it cost? Settings x seeds x shares of train.

    python sweeps/comparison.py --task tasks/fingerprint.py --preset parts --data.root parts/ --settings model.k=2|8 --seeds 3
    python sweeps/comparison.py --settings model.k=2|8 --train-shares 0.1 0.3 1 --latency
    python sweeps/comparison.py --variants "few: model.k=2 optim.lr=1e-3" "many: model.k=8 optim.lr=3e-4"

Begun again, it runs only what is missing.
"""

from pathlib import Path

from assay.sweep.comparison import ComparisonLaunch, main

TASK = Path(__file__).parents[1] / "tasks" / "fingerprint.py"

if __name__ == "__main__":
    main(ComparisonLaunch(task=TASK))

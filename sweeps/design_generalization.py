"""Does it hold on a design it never saw? Train on m designs, test on all others.

    python sweeps/design_generalization.py                # the embedded parts
    python sweeps/design_generalization.py --task tasks/fingerprint.py --fold-column printer --leave-out 1

Begun again, it runs only what is missing.
"""

from pathlib import Path

from assay.sweep.generalize import FoldLaunch, main

TASK = Path(__file__).parents[1] / "tasks" / "fingerprint.py"

if __name__ == "__main__":
    main(FoldLaunch(task=TASK, preset="designs", train_on=(1, 3, 6), choices=2, seeds=2))

"""Does it hold on a design it never saw? Train on m designs, test on all others.

    python sweeps/design_generalization.py                # the embedded parts
    python sweeps/design_generalization.py --task tasks/fingerprint.py --data.root parts/ --leave-out 1
    python sweeps/design_generalization.py --task tasks/extrusion.py --fold-column printer_id --leave-out 1 2 --settings "algorithm.name=erm|dann|coral" --draws 5

Begun again, it runs only what is missing.
"""

from pathlib import Path

from assay.sweep.generalize import FoldLaunch, main

TASK = Path(__file__).parents[1] / "tasks" / "fingerprint.py"

if __name__ == "__main__":
    main(FoldLaunch(task=TASK, preset="designs", train_on=(1, 3, 6), choices=2, seeds=2))

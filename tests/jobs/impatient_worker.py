"""jobs/worker.py with six seconds of patience in place of ten minutes."""

from datetime import timedelta

from nanolit.callbacks import saving
from nanolit.jobs import worker

saving.SILENCE = timedelta(seconds=6)

if __name__ == "__main__":
    worker.main()

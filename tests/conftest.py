"""One thread for each test process: two busy two-thread processes on two cores crawl."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

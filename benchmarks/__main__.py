"""All rows of the table of targets: `make bench`, or python -m benchmarks [--rows 1,2] [--rounds 3] [--save].

Every ratio is of two runs side by side on this machine. On a GPU rows 3 to 12 and 16 take the paper's sizes, as
`python benchmarks/gpu.py` does. Rows 1, 2 and 13 to 15 start Ray; 13 to 15 want `make demo` to have run.

Cost: about 20 minutes on 2 cores.
"""

from __future__ import annotations

import sys

from benchmarks import command_rows, gpu, input_rows

if __name__ == "__main__":
    rows = {**command_rows.ROWS, **input_rows.ROWS, **gpu.all_rows()}
    sys.exit(gpu.main(functions=rows, name="bench", about=__doc__))

"""`python -m midisynth`."""

import sys

from midisynth.main import main

if __name__ == "__main__":
    sys.exit(main())
